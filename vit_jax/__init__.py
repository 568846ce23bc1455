"""The Vision Transformer of arXiv:2010.11929 in JAX and Flax."""

import importlib
import typing

if typing.TYPE_CHECKING:
    from vit_jax.data.preprocess import preprocess
    from vit_jax.distributed.multihost import connect
    from vit_jax.evaluation.evaluate import evaluate
    from vit_jax.evaluation.extract import extract_features
    from vit_jax.evaluation.predict import predict
    from vit_jax.models.registry import create_model, list_models
    from vit_jax.training.run import train
    from vit_jax.weights.load import load_params
    from vit_jax.weights.pretrained import load
    from vit_jax.weights.save import save_params

__version__ = "0.1.0"

_MODULES = {  # Public name -> the module that defines it.
    "connect": "vit_jax.distributed.multihost",
    "create_model": "vit_jax.models.registry",
    "evaluate": "vit_jax.evaluation.evaluate",
    "extract_features": "vit_jax.evaluation.extract",
    "list_models": "vit_jax.models.registry",
    "load": "vit_jax.weights.pretrained",
    "load_params": "vit_jax.weights.load",
    "predict": "vit_jax.evaluation.predict",
    "preprocess": "vit_jax.data.preprocess",
    "save_params": "vit_jax.weights.save",
    "train": "vit_jax.training.run",
}
__all__ = [
    "connect",
    "create_model",
    "evaluate",
    "extract_features",
    "list_models",
    "load",
    "load_params",
    "predict",
    "preprocess",
    "save_params",
    "train",
]


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str):
    # JAX takes a second to import: `--help` and errors in a config do not need it.
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'vit_jax' has no attribute {name!r}")
