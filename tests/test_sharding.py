"""The mesh, the table of rules, and how much of a state one device holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from vit_jax import create_model, sharding, trees
from vit_jax.errors import ConfigError
from vit_jax.models import make_init
from vit_jax.optimizer import make_optimizer, make_schedule
from vit_jax.train_step import abstract_state


@pytest.mark.parametrize(
    ("name", "shape", "fsdp", "spec"),
    [
        ("head/kernel", (8, 16), 8, (None, "fsdp")),
        ("head/kernel", (16, 8), 8, ("fsdp",)),
        ("kernel", (16, 8), 8, ("fsdp",)),
        ("query/kernel", (32, 2, 16), 8, ("fsdp",)),
        ("embedding/kernel", (4, 4, 3, 32), 2, (None, None, None, "fsdp")),
        ("head/kernel", (8, 15), 8, ("fsdp",)),  # The longest that divides, not the longest.
        ("head/kernel", (7, 15), 8, ()),
        ("head/kernel", (8, 16), 1, ()),
        ("head/bias", (16,), 8, ()),
        ("LayerNorm_0/scale", (16,), 8, ()),
        ("cls", (1, 1, 16), 8, ()),
        ("posembed_input/pos_embedding", (1, 16, 16), 8, ()),
        ("my_kernel", (16, 16), 8, ()),
        ("kernel/scale", (16, 16), 8, ()),
        ("step", (), 8, ()),
        ("opt_state/1/mu/head/kernel", (8, 16), 8, (None, "fsdp")),
        ("opt_state/1/count", (), 8, ()),
    ],
)
def test_rules_split_the_longest_divisible_axis_of_kernels(name, shape, fsdp, spec):
    assert sharding.spec_for(name, shape, fsdp) == PartitionSpec(*spec)


@pytest.mark.parametrize(
    ("data", "fsdp", "shape"),
    [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (2, -1, (2, 4)), (1, 8, (1, 8)), (4, 2, (4, 2))],
)
def test_minus_one_takes_the_devices_that_are_left(data, fsdp, shape):
    mesh = sharding.make_mesh(data, fsdp)
    assert dict(mesh.shape) == {"data": shape[0], "fsdp": shape[1]}
    assert mesh.size == 8


def test_a_mesh_may_be_made_of_some_devices():
    assert dict(sharding.make_mesh(devices=jax.devices()[:2]).shape) == {"data": 2, "fsdp": 1}


@pytest.mark.parametrize(("data", "fsdp"), [(3, 1), (-1, 3), (5, -1), (4, 4), (1, 1)])
def test_axes_that_do_not_multiply_to_the_devices_are_refused_with_those_that_do(data, fsdp):
    words = rf"data:{data},fsdp:{fsdp} does not fit 8 devices.*8x1, 4x2, 2x4, 1x8\.$"
    with pytest.raises(ConfigError, match=words):
        sharding.make_mesh(data, fsdp)


@pytest.mark.parametrize(("batch", "nearest"), [(30, "24, 32"), (5, "8"), (33, "32, 40")])
def test_a_batch_that_devices_cannot_share_is_refused_with_the_nearest(batch, nearest):
    with pytest.raises(ConfigError, match=rf"{batch} .* by 8 devices; nearest: {nearest}\.$"):
        sharding.check_batch(batch, sharding.make_mesh(4, 2))


def test_a_batch_that_divides_is_accepted():
    sharding.check_batch(32, sharding.make_mesh(4, 2))
    sharding.check_batch(5, sharding.make_mesh(devices=jax.devices()[:1]))


def test_both_axes_split_the_batch():
    mesh = sharding.make_mesh(2, 4)
    batch = jax.device_put(np.arange(16), sharding.batch_sharding(mesh))
    parts = [tuple(np.asarray(shard.data)) for shard in batch.addressable_shards]
    assert sorted(parts) == [(i, i + 1) for i in range(0, 16, 2)]
    whole = jax.device_put(np.arange(16), sharding.replicated(mesh))
    assert {shard.data.shape for shard in whole.addressable_shards} == {(16,)}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimisers_state_lies_where_its_parameter_lies(name):
    model = create_model(
        "vit_ti16", patch=4, image_size=8, num_layers=1, hidden_size=32, mlp_size=64, num_heads=2
    )
    tx = make_optimizer(make_schedule(0.1, total_steps=9), name=name, weight_decay=0.1)
    state = abstract_state(make_init(model), tx, sharding.make_mesh(1, 8))
    params, moments = trees.flatten(state.params), trees.flatten(state.opt_state)
    owners = {
        moment: max((p for p in params if moment.endswith(f"/{p}")), key=len, default=None)
        for moment in moments
    }
    followers = {moment: owner for moment, owner in owners.items() if owner}
    assert len(followers) == len(params) * {"adamw": 2, "sgd": 1}[name]
    for moment, owner in followers.items():
        assert moments[moment].sharding == params[owner].sharding, moment
    num_split = sum(params[p].sharding.spec != PartitionSpec() for p in params)
    assert num_split == sum(p.endswith("kernel") for p in params) == 8
    for moment in set(moments) - set(followers):
        assert moments[moment].sharding.spec == PartitionSpec(), moment


def test_bytes_per_device_are_those_of_its_shards():
    tree = {"kernel": jnp.zeros((16, 8)), "bias": jnp.zeros(8, jnp.bfloat16), "step": jnp.zeros(())}
    shardings = sharding.tree_shardings(tree, sharding.make_mesh(2, 4))
    assert sharding.bytes_per_device(tree, shardings) == 16 * 8 * 4 // 4 + 8 * 2 + 4
    placed = jax.device_put(tree, shardings)
    for device in range(8):
        held = [leaf.addressable_shards[device].data.nbytes for leaf in placed.values()]
        assert sum(held) == 128 + 16 + 4
