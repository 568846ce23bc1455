"""The Vision Transformer that predicts masked patches (appendix B.1.2 of arXiv:2010.11929)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.models.vit import ViT, fields_of


class MaskedViT(ViT):
    """Images B H W 3, float32 in [-1, 1] -> predictions B N O, one for each patch.

    The head is a dense layer on the encoder's normalised output at the patches. Parameters have
    the names of a ViT, with `mask_token` and `patch_head` instead of the heads.
    """

    num_outputs: int = 512  # O, outputs for one patch.

    @classmethod
    def of(cls, vit: ViT, num_outputs: int) -> "MaskedViT":
        """Returns a model with the shape and options of a ViT."""
        return cls(**fields_of(vit), num_outputs=num_outputs)

    @nn.compact
    def __call__(
        self, images: jax.Array, is_masked: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """Returns predictions B N O in float32.

        Args:
          is_masked: B N; the mask token replaces the embedding of these patches.
        """
        z = self.embed(images)  # B N D
        mask_token = self.param("mask_token", nn.initializers.zeros, (1, 1, z.shape[-1]))
        if is_masked is not None:
            z = jnp.where(is_masked[..., None], mask_token.astype(z.dtype), z)
        z = self.patches_of(self.encode(z, train=train))
        z = (self.fc_norm(z) if self.config.fc_norm else z).astype(jnp.float32)
        return nn.Dense(self.num_outputs, kernel_init=nn.initializers.zeros, name="patch_head")(z)
