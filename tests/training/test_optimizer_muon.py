"""Muon on the parameters of models: which kernels are matrices, and their shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax import create_model
from vit_jax.config.schema import Optimizer
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.models import trees
from vit_jax.models.registry import make_init
from vit_jax.training.optimizer import make_optimizer
from vit_jax.training.train_step import make_abstract_state

CONFIG = Optimizer(name="muon", clip_norm=None)
SIZE = {"num_layers": 1, "hidden_size": 24, "mlp_size": 32, "num_heads": 3, "patch": 4}


def model_of(name="vit_ti16", **options):
    size = SIZE if name == "vit_ti16" else {}
    return create_model(name, num_classes=5, image_size=32, **size | options)


def kernels_with_muon(model) -> set[str]:
    """Names of the parameters whose optimizer state belongs to Muon."""
    params = jax.eval_shape(make_init(model), jax.random.key(0))
    names = trees.flatten(jax.eval_shape(make_optimizer(CONFIG, 0.1).init, params))
    parts = (name.partition("/muon/") for name in names)
    states = {after.partition("/mu/")[2] for _, _, after in parts if "/mu/" in after}
    assert states <= set(trees.flatten(params))
    return states


def test_muon_trains_the_kernels_of_hidden_layers():
    block = "Transformer/encoderblock_0"
    expected = {f"{block}/MlpBlock_0/Dense_{i}/kernel" for i in (0, 1)} | {
        f"{block}/MultiHeadDotProductAttention_0/{name}/kernel"
        for name in ("query", "key", "value", "out")
    }
    assert kernels_with_muon(model_of()) == expected
    everything = {"pos_embed": "relative", "qk_norm": True, "registers": 2, "layer_scale": 0.1}
    assert kernels_with_muon(model_of(**everything)) == expected
    assert kernels_with_muon(model_of(pre_logits=True)) == expected | {"pre_logits/kernel"}


def test_muon_trains_the_convolutions_of_a_resnet_without_its_first():
    names = kernels_with_muon(model_of("bit_r26x1"))
    assert "block1/unit1/conv2/kernel" in names
    assert not names & {"conv_root/kernel", "head/kernel"}


@pytest.mark.parametrize(
    ("name", "num_inputs"),
    [
        ("Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel", 1),
        ("Transformer/encoderblock_0/MultiHeadDotProductAttention_0/out/kernel", 2),
        ("Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel", 1),
    ],
)
def test_first_step_of_muon_is_nearly_the_orthogonal_factor_of_the_gradient(name, num_inputs):
    params = jax.jit(make_init(model_of()))(jax.random.key(0))
    random = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: jnp.float32(random.normal(size=p.shape)), params)
    tx = make_optimizer(CONFIG, 1.0)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    gradient, update = (np.array(trees.flatten(tree)[name], float) for tree in (grads, updates))
    rows = int(np.prod(gradient.shape[:num_inputs]))
    u, _, vt = np.linalg.svd(gradient.reshape(rows, -1), full_matrices=False)
    matrix = -update.reshape(rows, -1)
    size = 0.2 * np.sqrt(max(matrix.shape))
    # Newton-Schulz leaves the singular vectors and moves the singular values to 0.7 to 1.2.
    values = np.diag(u.T @ matrix @ vt.T) / size
    assert ((values > 0.6) & (values < 1.3)).all()
    np.testing.assert_allclose(matrix, size * (u * values) @ vt, atol=1e-3)
    root_mean_square = np.sqrt((matrix**2).mean())
    assert 0.1 < root_mean_square < 0.3


def test_state_of_muon_has_the_shardings_of_its_parameters():
    mesh, model = mesh_lib.make_mesh(2, 2, 2), model_of(hidden_size=32, num_heads=4)
    state = make_abstract_state(make_init(model), CONFIG, mesh)
    params = trees.flatten(state.params)
    moments = {
        name.partition("/mu/")[2]: leaf
        for name, leaf in trees.flatten(state.opt_state).items()
        if "/mu/" in name
    }
    assert set(moments) == set(params)
    for name, moment in moments.items():
        assert moment.sharding == params[name].sharding, name
