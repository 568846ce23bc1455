"""The Vision Transformer of arXiv:2010.11929 in JAX and Flax.

The Python API: `create_model`, `list_models`, `load_params`, `preprocess`.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from vit_jax.data.preprocess import preprocess
    from vit_jax.models.registry import create_model, list_models
    from vit_jax.weights.load import load_params

__all__ = ["create_model", "list_models", "load_params", "preprocess"]
__version__ = "0.1.0"

_HOMES = {
    "create_model": "vit_jax.models.registry",
    "list_models": "vit_jax.models.registry",
    "load_params": "vit_jax.weights.load",
    "preprocess": "vit_jax.data.preprocess",
}


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str):
    # JAX is imported when it is first needed: `--help` and a mistake in a config never do.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vit_jax' has no attribute {name!r}")
