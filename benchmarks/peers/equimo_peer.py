"""VisionTransformer of Equimo, in Equinox."""

import equinox as eqx
import jax
import jax_protocol
from equimo.vision.models.vit import VisionTransformer


def build_model(shape: dict, dtype: str):
    height, width = shape["image_size"]
    if height != width:
        raise ValueError(f"Equimo has square images only, not {height} x {width}")
    model = VisionTransformer(
        img_size=height,
        in_channels=3,
        patch_size=shape["patch_size"],
        num_classes=shape["num_classes"],
        dim=shape["hidden_size"],
        depths=[shape["num_layers"]],
        num_heads=shape["num_heads"],
        mlp_ratio=shape["mlp_size"] / shape["hidden_size"],
        reg_tokens=0,
        global_pool="token",
        key=jax.random.key(0),
    )
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def apply(params, images):
        params, images = jax_protocol.cast((params, images), dtype)
        model = eqx.combine(params, static)
        images = images.transpose(0, 3, 1, 2)
        return jax.vmap(lambda image: model(image, inference=True))(images)

    return params, apply


if __name__ == "__main__":
    jax_protocol.main(build_model, "equimo")
