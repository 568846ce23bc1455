"""Tests of `parse_collectives` on a compiled module and on HLO text."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vit_jax.planning.communication import ALL_REDUCE_SLICE, Collective, bytes_sent_by_kind
from vit_jax.planning.hlo import parse_collectives

AXES = ("data", "fsdp", "tensor")
AUTO = (AxisType.Auto,) * 3


def test_parse_collectives_of_a_compiled_step_matches_theory():
    mesh = jax.make_mesh((2, 2, 2), AXES, axis_types=AUTO)
    L, D, M, B, T = 4, 16, 32, 8, 5

    def sharding(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    def loss(kernels, z):
        def layer(z, kernel):
            return z + jax.nn.gelu(z @ kernel[0]) @ kernel[1], None

        return jnp.mean(jax.lax.scan(layer, z, kernels)[0] ** 2)

    def step(kernels, z):
        grads = jax.grad(loss)(kernels, z)
        return jax.tree.map(lambda kernel, grad: kernel - grad, kernels, grads)

    shardings = sharding(None, "fsdp", "tensor"), sharding(None, "tensor", "fsdp")
    kernels = tuple(
        jax.ShapeDtypeStruct((L, *shape), jnp.float32, sharding=each)
        for shape, each in zip(((D, M), (M, D)), shardings)
    )
    z = jax.ShapeDtypeStruct((B, T, D), jnp.float32, sharding=sharding(("data", "fsdp")))
    program = jax.jit(step, out_shardings=shardings).lower(kernels, z).compile()
    collectives = parse_collectives(program.as_text())

    kernel_bytes = 2 * L * D * M * 4 / 2  # Bytes of both kernels of all layers, split by tensor.
    activations = B / 4 * T * D * 4
    assert bytes_sent_by_kind(collectives) == {
        # Over data: a shard of the gradients. Over tensor: once forward, once backward.
        "all-reduce": 2 * 1 / 2 * kernel_bytes / 2 + 2 * L * 2 * 1 / 2 * activations,
        "all-gather": 2 * 1 / 2 * kernel_bytes,
        ALL_REDUCE_SLICE: 2 * 1 / 2 * kernel_bytes,  # Twice the bytes of reduce-scatter.
    }
    strides = {(each.kind, each.group_size, each.stride) for each in collectives}
    assert strides == {
        ("all-gather", 2, 2),
        (ALL_REDUCE_SLICE, 2, 2),
        ("all-reduce", 2, 1),
        ("all-reduce", 2, 4),
    }


MODULE = """HloModule step, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %p = (s32[], bf16[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %a = bf16[8,4]{1,0} get-tuple-element(%p), index=1
  %r = bf16[8,4]{1,0} all-reduce(%a), replica_groups=GROUPS, to_apply=%add
  ROOT %t = (s32[], bf16[8,4]{1,0}) tuple(%i, %r)
}

%condition (p.1: (s32[], bf16[8,4])) -> pred[] {
  %p.1 = (s32[], bf16[8,4]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (z: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %z = (s32[], bf16[8,4]{1,0}) parameter(0)
  ROOT %loop = (s32[], bf16[8,4]{1,0}) while(%z), condition=%condition, body=%bodyTRIPS
}
"""
TRIPS = ', backend_config={"known_trip_count":{"n":"5"}}'


@pytest.mark.parametrize(
    ("groups", "group_size", "stride"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", 2, 1),
        ("{{0,4},{1,5},{2,6},{3,7}}", 2, 4),
        ("[2,4]<=[8]", 4, 1),
        ("[2,4]<=[4,2]T(1,0)", 4, 2),
        ("{}", 8, 1),
        ("mesh['a'=8,'b'=1] {'a'}", 8, 1),
        ("mesh['a'=2,'b'=4] {'b'}", 4, 1),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", 4, 1),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", 2, 4),
    ],
)
def test_parse_collectives_reads_all_group_formats_and_trip_counts(groups, group_size, stride):
    hlo = MODULE.replace("GROUPS", groups).replace("TRIPS", TRIPS)
    assert parse_collectives(hlo) == [Collective("all-reduce", group_size, stride, 5 * 8 * 4 * 2)]


def test_parse_collectives_rejects_unknown_trip_counts_and_groups():
    with pytest.raises(ValueError, match="no known trip count"):
        parse_collectives(MODULE.replace("GROUPS", "{}").replace("TRIPS", ""))
    with pytest.raises(ValueError, match="unknown format of replica_groups"):
        parse_collectives(MODULE.replace("GROUPS", "ring").replace("TRIPS", TRIPS))
