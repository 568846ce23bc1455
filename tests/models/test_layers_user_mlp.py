"""User-defined MLPs: what a model calls them with, and what they must return."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from tests.support.tiny import tiny
from vit_jax.config.schema import Model
from vit_jax.errors import ConfigError
from vit_jax.models.flops import forward_macs
from vit_jax.models.registry import param_shapes

HERE = __name__


class Own(nn.Module):
    config: Model


class Right(Own):
    @nn.compact
    def __call__(self, z, key):  # The model always gives both.
        assert key is None or jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        return nn.Dense(z.shape[-1], dtype=z.dtype)(z)


class OfTrain(Own):
    def __call__(self, x, train):
        return x * 2 if train else x


class OneArgument(Own):
    def __call__(self, z):
        return z


class NeedsKey(Own):
    def __call__(self, z, key):
        return nn.Dropout(0.1, deterministic=False)(z, rng=key)


class Float32(Own):
    @nn.compact
    def __call__(self, z, key=None):
        return nn.Dense(z.shape[-1], dtype=jnp.float32)(z)


class Wider(Own):
    @nn.compact
    def __call__(self, z, key=None):
        return nn.Dense(2 * z.shape[-1], dtype=z.dtype)(z)


class OneChannel(Own):  # Would broadcast over D.
    def __call__(self, z, key=None):
        return z[..., :1]


class TwoValues(Own):
    def __call__(self, z, key=None):
        return z, z


class WithStatistics(Own):
    @nn.compact
    def __call__(self, z, key=None):
        return nn.BatchNorm(use_running_average=True)(z)


def no_name(config):
    return Right(config)


def of(name, **options):
    return tiny(mlp=f"{HERE}:{name}", **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_and_its_flops_have_a_user_defined_mlp(dtype):
    model = of("Right", dtype=dtype)
    assert "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel" in param_shapes(model)
    assert forward_macs(model) > 0


def test_float32_may_be_returned_for_float32():
    assert of("Float32", dtype="float32")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OfTrain", "called with (z B T D, key or None), raised TracerBoolConversionError: "),
        ("OneArgument", "called with (z B T D, key or None), raised TypeError: "),
        ("NeedsKey", "called with (z B T D, key or None), raised "),
        ("no_name", "called with (z B T D, key or None), raised TypeError: no_name() got an"),
        ("Float32", "returned float32 (2, 3, 32) for bfloat16 (2, 3, 32); it must return the sh"),
        ("Wider", "returned bfloat16 (2, 3, 64) for bfloat16 (2, 3, 32)"),
        ("OneChannel", "returned bfloat16 (2, 3, 1) for bfloat16"),
        ("TwoValues", "returned tuple for bfloat16"),
        ("WithStatistics", "called with (z B T D, key or None), raised ScopeCollectionNotFound"),
    ],
)
def test_a_wrong_mlp_is_named_with_what_it_returned(name, message):
    with pytest.raises(ConfigError) as caught:
        of(name, dtype="bfloat16")
    text = str(caught.value).replace("',", "'", 1)
    assert text.startswith(f"model.mlp='{HERE}:{name}' {message}")
    assert "\n" not in text
