"""Two towers with a shared encoder: pulls two views of an image together (SimSiam-style).

python examples/two_towers.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import vit_jax
from vit_jax.models.vit import ViT


class TwoTowers(nn.Module):
    """Embeds two batches with one encoder; a predictor follows the first."""

    encoder: ViT  # With num_classes=0: images -> features B D.
    width: int = 64

    @nn.compact
    def __call__(self, left: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
        features = self.encoder(jnp.concatenate([left, right]))
        left, right = jnp.split(nn.Dense(self.width, name="projection")(features), 2)
        return nn.Dense(self.width, name="predictor")(left), right


def loss_fn(model: TwoTowers, params, left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns one minus the mean cosine similarity; the second tower gets no gradient."""
    predicted, target = model.apply({"params": params}, left, right)
    return 1 - jnp.mean(optax.cosine_similarity(predicted, jax.lax.stop_gradient(target)))


def main(steps: int = 20) -> list[float]:
    """Trains on noise and shifted copies of it; returns the loss of each step."""
    shape = {"patch": 8, "num_layers": 2, "hidden_size": 64, "mlp_size": 128, "num_heads": 4}
    encoder = vit_jax.create_model("vit_ti16", num_classes=0, image_size=32, **shape)
    model, tx = TwoTowers(encoder), optax.adam(1e-3)
    images = np.random.default_rng(0).uniform(-1, 1, (16, 32, 32, 3)).astype(np.float32)
    shifted = np.roll(images, 2, axis=2)
    params = model.init(jax.random.key(0), images, shifted)["params"]
    opt_state, losses = tx.init(params), []

    @jax.jit
    def train_step(params, opt_state):
        loss, grads = jax.value_and_grad(lambda p: loss_fn(model, p, images, shifted))(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    for _ in range(steps):
        params, opt_state, loss = train_step(params, opt_state)
        losses.append(float(loss))
    return losses


if __name__ == "__main__":
    losses = main()
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
