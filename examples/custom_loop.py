"""A custom training loop around the ViT: 300 steps on the digits of scikit-learn, on a CPU.

python examples/custom_loop.py --out=digits.npz
"""

import argparse

import jax
import numpy as np
import optax

import vit_jax
from vit_jax.config.schema import Data
from vit_jax.data.sources import open_split


def load_images(split: str, model) -> tuple[np.ndarray, np.ndarray]:
    """Returns images N H W 3 in [-1, 1] and labels N."""
    source = open_split(Data(source="digits"), split)
    images = [source[i]["image"] for i in range(len(source))]
    return vit_jax.preprocess(images, model), np.asarray(source.labels)


def main(steps: int = 300, batch_size: int = 64, size: int = 16, out: str = "") -> float:
    """Trains, saves to the file `out`, and returns the accuracy on the validation split."""
    shape = {"patch": 4, "num_layers": 3, "hidden_size": 64, "mlp_size": 128, "num_heads": 4}
    model = vit_jax.create_model("vit_ti16", num_classes=10, image_size=size, **shape)
    images, labels = load_images("train", model)
    params = model.init(jax.random.key(0), images[:1])["params"]
    tx = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=1e-2)
    opt_state = tx.init(params)

    @jax.jit
    def train_step(params, opt_state, images, labels):
        def loss_fn(params):
            logits = model.apply({"params": params}, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    random = np.random.default_rng(0)
    for step in range(steps):
        rows = random.integers(len(labels), size=batch_size)
        params, opt_state, loss = train_step(params, opt_state, images[rows], labels[rows])
        if step % 50 == 0:
            print(f"step {step}  loss {loss:.4f}")
    if out:
        vit_jax.save_params(out, model, params, classes=[str(digit) for digit in range(10)])
    images, labels = load_images("val", model)
    predictions = jax.jit(model.apply)({"params": params}, images).argmax(axis=1)
    return float((predictions == labels).mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", default="", help="file for the parameters: .npz or .safetensors")
    print(f"accuracy {main(**vars(parser.parse_args())):.4f}")
