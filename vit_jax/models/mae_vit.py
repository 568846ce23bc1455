"""The masked autoencoder (arXiv:2111.06377): a ViT that sees few patches, and a decoder of all."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.config.schema import Model
from vit_jax.models.transformer import Encoder
from vit_jax.models.vit import ViT, fields_of

TOKEN_INIT = nn.initializers.normal(0.02)  # Of the class token and of the mask token.


class MaeViT(ViT):
    """Images B H W 3 -> predictions B N O, one for each patch; letters as in models/vit.py.

    Parameters have the names of a ViT, without a head, and those of the decoder: `decoder_embed`,
    `decoder_mask_token`, `Decoder` (an encoder of the decoder's size) and `decoder_pred`.
    """

    decoder: Model = Model()  # Section of the decoder; its size is num_layers, hidden_size, ...
    num_kept: int = 49  # V, the number of patches that the encoder sees.

    token_init = staticmethod(TOKEN_INIT)

    @classmethod
    def of(
        cls, vit: ViT, num_kept: int, *, num_layers: int, hidden_size: int, num_heads: int
    ) -> "MaeViT":
        """Returns a model with the shape and options of a ViT, and a decoder of a given size."""
        plain = Model()
        same = ("class_token", "distill_token", "registers", "gelu", "norm_eps", "dtype", "kernels")
        same += ("pool", "scan", "remat")
        decoder = dataclasses.replace(
            plain,
            **{name: getattr(vit.config, name) for name in same},
            num_layers=num_layers,
            hidden_size=hidden_size,
            mlp_size=4 * hidden_size,
            num_heads=num_heads,
            pos_embed="sincos_mae",
        )
        return cls(**fields_of(vit), decoder=decoder, num_kept=num_kept)

    @property
    def num_tokens(self) -> int:
        return self.num_prefix_tokens + self.num_kept

    def setup(self):
        super().setup()
        d = self.decoder.hidden_size
        self.decoder_embed = nn.Dense(d, kernel_init=nn.initializers.xavier_uniform())
        self.decoder_mask_token = self.param("decoder_mask_token", TOKEN_INIT, (1, 1, d))
        self.Decoder = Encoder(self.decoder, self.grid)
        outputs = 3 * self.patch_size**2
        self.decoder_pred = nn.Dense(outputs, kernel_init=nn.initializers.xavier_uniform())

    def __call__(
        self, images: jax.Array, order: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """Returns predictions B N O in float32.

        Args:
          order: B N, the patches of each image in random order, of which the first V are encoded.
            None encodes all.
        """
        z = self.embed(images)  # B N D
        B, N, _ = z.shape
        V = N if order is None else self.num_kept
        order = jnp.broadcast_to(jnp.arange(N), (B, N)) if order is None else order
        z = self.decoder_embed(self.encode(z, train=train, keep=order[:, :V]))
        first, kept = jnp.split(z, [self.num_prefix_tokens], axis=1)
        removed = (B, N - V, z.shape[-1])
        masked = jnp.broadcast_to(self.decoder_mask_token.astype(z.dtype), removed)
        restored = jnp.argsort(order, axis=1)[..., None]
        patches = jnp.take_along_axis(jnp.concatenate([kept, masked], axis=1), restored, axis=1)
        z = self.Decoder(jnp.concatenate([first, patches], axis=1), None)
        return self.decoder_pred(self.patches_of(z).astype(jnp.float32))
