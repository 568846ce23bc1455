"""Patch tokens of two layers as the input of a detector: one box score for each patch.

python examples/patch_detector.py [WEIGHTS]
"""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp

import vit_jax
from vit_jax.models.vit import ViT


class PatchDetector(nn.Module):
    """Predicts a box (4 numbers) and a score for each patch from the tokens of two layers."""

    backbone: ViT
    layers: tuple[int, int]

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:  # B H W 3 -> B h w 4, B h w
        early, late = self.backbone.intermediate(images, self.layers)  # B N D each
        features = jnp.concatenate([nn.LayerNorm()(early), nn.LayerNorm()(late)], axis=-1)
        features = features.reshape(len(images), *self.backbone.grid, -1)
        features = nn.gelu(nn.Conv(64, (3, 3))(features))
        outputs = nn.Dense(5, name="boxes_and_scores")(features)
        return {"boxes": nn.sigmoid(outputs[..., :4]), "scores": outputs[..., 4]}


def main(weights: str | None = None) -> dict[str, jax.Array]:
    """Applies a detector to two images; its backbone starts from `weights` if they are given."""
    shape = {"patch": 8, "num_layers": 4, "hidden_size": 64, "mlp_size": 128, "num_heads": 4}
    if weights is None:
        backbone = vit_jax.create_model("vit_ti16", num_classes=0, image_size=(64, 96), **shape)
    else:
        backbone = vit_jax.load(weights).model.clone(num_classes=0)
    detector = PatchDetector(backbone, layers=(2, backbone.size.num_layers))
    images = jnp.zeros((2, *backbone.image_size, 3))
    params = detector.init(jax.random.key(0), images)["params"]
    if weights is not None:
        params["backbone"] |= vit_jax.load_params(weights, backbone, new_head=True)
    return jax.jit(detector.apply)({"params": params}, images)


if __name__ == "__main__":
    for name, array in main(*sys.argv[1:]).items():
        print(name, array.shape)
