"""A run of two processes that is long enough to be interrupted, and its comparison to the bit."""

import os
import pathlib

from tests.support.runs import ROOT, final_state, records

STEPS = 40
# Dropout, stochastic depth, mixup and a moving average: state that an imperfect resume changes.
CONFIG = f"""
from vit_jax.config import base_config


def get_config(arg=None):
    config = base_config()
    config.model.update(name="vit_ti16", patch=14, num_layers=2, hidden_size=16, mlp_size=32)
    config.model.update(num_heads=2, dropout=0.1, drop_path=0.1)
    config.data.update(image_size=28, num_classes=3, num_examples=100, mixup=0.3)
    config.optimizer.update(warmup_steps=5, weight_decay=0.1, ema=0.99)
    config.update(batch_size=16, steps={STEPS}, log_every=1, checkpoint_every=10, eval_every=20)
    return config
"""


def environment() -> dict[str, str]:
    """Returns the variables of processes with one CPU device each, which compile quickly."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "PYTHONPATH": str(ROOT),
    }


def num_steps(folder: pathlib.Path) -> int:
    """Returns the number of steps that a run has logged."""
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def assert_equal_to_the_bit(folder: pathlib.Path, reference: pathlib.Path) -> None:
    """Compares all logged numbers, ids of examples, and checksums of all arrays of the state."""
    found, expected = records(folder), records(reference)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    assert found == expected
    assert final_state(folder) == final_state(reference)
