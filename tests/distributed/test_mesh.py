"""Tests of the device mesh, the sharding rules and the bytes per device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from vit_jax import create_model
from vit_jax.config.schema import Optimizer
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.errors import ConfigError
from vit_jax.models import trees
from vit_jax.models.registry import make_init
from vit_jax.training.train_step import make_abstract_state


@pytest.mark.parametrize(
    ("name", "shape", "fsdp", "spec"),
    [
        ("head/kernel", (8, 16), 8, (None, "fsdp")),
        ("head/kernel", (16, 8), 8, ("fsdp",)),
        ("kernel", (16, 8), 8, ("fsdp",)),
        ("query/kernel", (32, 2, 16), 8, ("fsdp",)),
        ("embedding/kernel", (4, 4, 3, 32), 2, (None, None, None, "fsdp")),
        ("head/kernel", (8, 15), 8, ("fsdp",)),  # The longest dimension that 8 divides.
        ("head/kernel", (7, 15), 8, ()),
        ("head/kernel", (8, 16), 1, ()),
        ("head/bias", (16,), 8, ()),
        ("LayerNorm_0/scale", (16,), 8, ()),
        ("cls", (1, 1, 16), 8, ()),
        ("posembed_input/pos_embedding", (1, 15, 16), 8, (None, None, "fsdp")),
        ("my_kernel", (16, 16), 8, ()),
        ("kernel/scale", (16, 16), 8, ()),
        ("step", (), 8, ()),
        ("opt_state/1/mu/head/kernel", (8, 16), 8, (None, "fsdp")),
        ("opt_state/1/count", (), 8, ()),
    ],
)
def test_partition_spec_fsdp_splits_the_longest_divisible_dimension(name, shape, fsdp, spec):
    assert mesh_lib.partition_spec(name, shape, fsdp=fsdp) == PartitionSpec(*spec)


BLOCK = "Transformer/encoderblock_3"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_0"


@pytest.mark.parametrize(
    ("name", "shape", "spec"),
    [
        (f"{ATTENTION}/query/kernel", (32, 4, 8), ("fsdp", "tensor")),
        (f"{ATTENTION}/key/kernel", (32, 3, 8), ("fsdp", None, "tensor")),  # 3 heads of 8.
        (f"{ATTENTION}/value/bias", (4, 8), ("tensor",)),
        (f"{ATTENTION}/value/bias", (3, 8), (None, "tensor")),
        (f"{ATTENTION}/out/kernel", (4, 8, 32), ("tensor", None, "fsdp")),
        (f"{ATTENTION}/out/bias", (32,), ()),
        (f"{ATTENTION}/query_ln/scale", (8,), ()),
        (f"{ATTENTION}/relative/relative_embedding", (25, 4, 8), (None, "tensor", "fsdp")),
        (f"{BLOCK}/MlpBlock_0/Dense_0/kernel", (32, 64), ("fsdp", "tensor")),
        (f"{BLOCK}/MlpBlock_0/Dense_0/bias", (64,), ("tensor",)),
        (f"{BLOCK}/MlpBlock_0/Dense_gate/kernel", (32, 64), ("fsdp", "tensor")),
        (f"{BLOCK}/MlpBlock_0/Dense_gate/bias", (64,), ("tensor",)),
        (f"{BLOCK}/MlpBlock_0/Dense_1/kernel", (64, 32), ("tensor", "fsdp")),
        (f"{BLOCK}/MlpBlock_0/Dense_1/bias", (32,), ()),
        (f"opt_state/1/mu/{BLOCK}/MlpBlock_0/Dense_1/kernel", (64, 32), ("tensor", "fsdp")),
        (f"opt_state/0/v_row/{BLOCK}/MlpBlock_0/Dense_1/kernel", (64,), ("fsdp",)),
        (f"{BLOCK}/LayerNorm_0/scale", (32,), ()),
        ("head/kernel", (32, 10), ("fsdp",)),
        ("embedding/kernel", (4, 4, 3, 32), (None, None, None, "fsdp")),
    ],
)
def test_partition_spec_tensor_splits_heads_or_head_size_and_mlp_width(name, shape, spec):
    assert mesh_lib.partition_spec(name, shape, fsdp=2, tensor=2) == PartitionSpec(*spec)


def test_partition_spec_rejects_a_tensor_size_that_divides_no_dimension():
    with pytest.raises(
        ConfigError, match=r"tensor=5 .*\[3, 8\] of query/kernel; expected .*\[1, 2, 3, 4, 8\]"
    ):
        mesh_lib.partition_spec("query/kernel", (32, 3, 8), fsdp=1, tensor=5)


def test_unsharded_parameters_lists_large_parameters_that_fsdp_cannot_split():
    shapes = {"probe": (1, 513, 512), "a": {"kernel": (7, 99_991)}, "b": {"kernel": (8, 99_991)}}
    shapes |= {"scale": (512,), "c": {"kernel": (7, 9)}}  # Too small to be listed.
    is_shape = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    tree = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=is_shape)

    def shapes_on(mesh):
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            tree,
            mesh_lib.tree_shardings(tree, mesh),
        )

    assert mesh_lib.unsharded_parameters(shapes_on(mesh_lib.make_mesh(1, 8))) == [
        "a/kernel",
        "probe",
    ]
    assert mesh_lib.unsharded_parameters(shapes_on(mesh_lib.make_mesh(8, 1))) == []


def test_sharding_table_has_one_row_for_equal_parameters_of_all_layers():
    model = create_model(
        "vit_ti16", patch=4, image_size=8, num_layers=3, hidden_size=32, mlp_size=64, num_heads=4
    )
    mesh = mesh_lib.make_mesh(2, 2, 2)
    state = make_abstract_state(make_init(model), Optimizer(name="sgd"), mesh)
    rows = {row["array"]: row for row in mesh_lib.sharding_table(state.params)}
    assert len(rows) == 16 + 8  # A layer; embedding, class token, positions, norm and head.
    row = rows["Transformer/encoderblock_*/MlpBlock_0/Dense_1/kernel"]
    assert (row["count"], row["shape / axis"]) == (3, "64/tensor x 32/fsdp")
    assert row["MB"] == round(3 * 64 * 32 * 4 / 1e6, 3)
    assert row["MB per device"] == round(3 * 64 * 32 * 4 / 4 / 1e6, 3)
    total = sum(row["MB per device"] for row in rows.values())
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state.params)
    num_bytes = mesh_lib.bytes_per_device(state.params, shardings)
    assert total == pytest.approx(num_bytes / 1e6, abs=0.0005 * len(rows))


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((-1, 4, 1), (2, 4, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((1, 1, -1), (1, 1, 8)),
        ((4, 2, 1), (4, 2, 1)),
    ],
)
def test_make_mesh_resolves_minus_one_to_the_remaining_devices(sizes, shape):
    mesh = mesh_lib.make_mesh(*sizes)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape))
    assert mesh.size == 8


def test_make_mesh_places_tensor_devices_next_to_each_other():
    mesh = mesh_lib.make_mesh(2, 2, 2)
    assert [[d.id for d in row] for row in mesh.devices.reshape(4, 2)] == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ]


@pytest.mark.parametrize("sizes", [(3, 1, 1), (4, 4, 1), (-1, 3, 1), (8, 1, 2), (2, 2, 1)])
def test_make_mesh_rejects_invalid_sizes_and_lists_valid_ones(sizes):
    message = (
        r"does not fit 8 devices; data x fsdp x tensor can be 8x1x1, 4x2x1, .* 2x2x2, .* 1x1x8\.$"
    )
    with pytest.raises(ConfigError, match=message):
        mesh_lib.make_mesh(*sizes)


@pytest.mark.parametrize(("batch", "nearest"), [(30, "24, 32"), (5, "8"), (33, "32, 40")])
def test_check_batch_size_rejects_an_uneven_split_with_the_nearest_sizes(batch, nearest):
    with pytest.raises(ConfigError, match=rf"{batch} .* by 8 devices; nearest: {nearest}\.$"):
        mesh_lib.check_batch_size(batch, mesh_lib.make_mesh(4, 2))


def test_check_batch_size_accepts_an_even_split():
    mesh_lib.check_batch_size(32, mesh_lib.make_mesh(4, 2))
    mesh_lib.check_batch_size(4, mesh_lib.make_mesh(2, 2, 2))
    mesh_lib.check_batch_size(5, mesh_lib.make_mesh(devices=jax.devices()[:1]))


def test_batch_sharding_splits_over_data_and_fsdp_only():
    mesh = mesh_lib.make_mesh(2, 4)
    batch = jax.device_put(np.arange(16), mesh_lib.batch_sharding(mesh))
    parts = [tuple(np.asarray(shard.data)) for shard in batch.addressable_shards]
    assert sorted(parts) == [(i, i + 1) for i in range(0, 16, 2)]
    shared = mesh_lib.batch_sharding(mesh_lib.make_mesh(2, 2, 2))
    assert {s.data.shape for s in jax.device_put(np.arange(16), shared).addressable_shards} == {
        (4,)
    }
    copies = jax.device_put(np.arange(16), mesh_lib.replicated(mesh))
    assert {shard.data.shape for shard in copies.addressable_shards} == {(16,)}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_tree_shardings_of_an_optimizer_state_follow_its_parameters(name):
    model = create_model(
        "vit_ti16", patch=4, image_size=8, num_layers=1, hidden_size=32, mlp_size=64, num_heads=2
    )
    config = Optimizer(name=name, weight_decay=0.1)
    state = make_abstract_state(make_init(model), config, mesh_lib.make_mesh(1, 8))
    params, moments = trees.flatten(state.params), trees.flatten(state.opt_state)
    owners = {
        moment: max((p for p in params if moment.endswith(f"/{p}")), key=len, default=None)
        for moment in moments
    }
    followers = {moment: owner for moment, owner in owners.items() if owner}
    assert len(followers) == len(params) * {"adamw": 2, "sgd": 1}[name]
    for moment, owner in followers.items():
        assert moments[moment].sharding == params[owner].sharding, moment
    split = {p for p in params if params[p].sharding.spec != PartitionSpec()}
    assert split == {p for p in params if p.endswith(("kernel", "pos_embedding"))}
    assert len(split) == 9
    for moment in set(moments) - set(followers):
        assert moments[moment].sharding.spec == PartitionSpec(), moment


def test_bytes_per_device_is_the_size_of_the_local_shards():
    tree = {"kernel": jnp.zeros((16, 8)), "bias": jnp.zeros(8, jnp.bfloat16), "step": jnp.zeros(())}
    shardings = mesh_lib.tree_shardings(tree, mesh_lib.make_mesh(2, 4))
    assert mesh_lib.bytes_per_device(tree, shardings) == 16 * 8 * 4 // 4 + 8 * 2 + 4
    sharded = jax.device_put(tree, shardings)
    for device in range(8):
        sizes = [leaf.addressable_shards[device].data.nbytes for leaf in sharded.values()]
        assert sum(sizes) == 128 + 16 + 4
