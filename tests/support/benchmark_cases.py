"""Benchmark cases of a model that is small enough for tests."""

from vit_jax.benchmark import benchmark

SHAPE = {"num_layers": "1", "hidden_size": "32", "mlp_size": "64", "num_heads": "2"}
FIELDS = {"data.image_size": "32"} | {f"model.{name}": size for name, size in SHAPE.items()}
NAMED_SIZE = dict.fromkeys(FIELDS, "None") | {"data.image_size": "32"}  # Size of the model name.


def tiny_cases(**changes) -> list[benchmark.Case]:
    fields = FIELDS | changes.pop("fields", {})
    arguments = {"suite": None, "model": "vit_ti16", "batch": 4, "dtype": "float32"}
    arguments |= {"mode": "training", "warmup": 1, "steps": 2, "fields": fields}
    return benchmark.make_cases(**arguments | changes)
