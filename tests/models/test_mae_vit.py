"""The masked autoencoder's model: initial values."""

import jax
import numpy as np
import pytest

from tests.support.tiny import tiny
from vit_jax.models import trees
from vit_jax.models.mae_vit import MaeViT
from vit_jax.models.registry import make_init

D, d = 1024, 768  # Wide enough for statistics.


@pytest.fixture(scope="module")
def initial():
    """Name -> initial array."""
    sizes = {"hidden_size": D, "num_layers": 1, "mlp_size": 8, "class_token": True}
    vit = tiny(num_classes=0, pool="gap", **sizes)
    model = MaeViT.of(vit, 3, num_layers=1, hidden_size=d, num_heads=2)
    return trees.flatten(jax.jit(make_init(model))(jax.random.key(0)))


@pytest.mark.parametrize(("name", "width"), [("cls", D), ("decoder_mask_token", d)])
def test_tokens_start_normal_with_deviation_two_hundredths(initial, name, width):
    token = np.asarray(initial[name])
    assert token.shape == (1, 1, width)
    assert token.std() == pytest.approx(0.02, rel=0.1)
    assert abs(token.mean()) < 0.003


def test_decoder_projections_start_xavier_uniform(initial):
    for name, fans in (("decoder_embed", D + d), ("decoder_pred", d + 48)):
        kernel, bound = np.asarray(initial[f"{name}/kernel"]), np.sqrt(6 / fans)
        assert 0.98 * bound < np.abs(kernel).max() <= bound, name
        assert not initial[f"{name}/bias"].any()
