"""Bytes between devices: theory by hand, and what stands in a compiled module."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from vit_jax.errors import ConfigError
from vit_jax.planning import communication
from vit_jax.planning.accelerators import Accelerator
from vit_jax.planning.communication import SLICED, Traffic

AXES = ("data", "fsdp", "tensor")
AUTO = (AxisType.Auto,) * 3
MB = 2**20


def params_on(*shape: int) -> dict:
    """A kernel of 4 MB split as the mesh wants it, and a bias of 64 bytes on all devices."""
    mesh = AbstractMesh(shape, AXES, axis_types=AUTO)
    split = PartitionSpec("fsdp", "tensor") if shape[2] > 1 else PartitionSpec("fsdp")
    split = split if shape[1] > 1 else PartitionSpec(*(None, *split[1:]))
    places = {"kernel": split, "bias": PartitionSpec()}
    shapes = {"kernel": (1024, 1024), "bias": (16,)}
    return {
        name: jax.ShapeDtypeStruct(
            shapes[name], jnp.float32, sharding=NamedSharding(mesh, places[name])
        )
        for name in places
    }


def theory(*shape: int, **options) -> dict[str, float]:
    options = {"num_layers": 3, "activations": 1000.0} | options
    return communication.sent_by_kind(communication.theory(params_on(*shape), **options))


def test_copies_of_a_model_sum_their_gradients():
    # A ring of 4 sends 2 x 3/4 of the kernel and of the bias.
    assert theory(4, 1, 1) == {"all-reduce": 1.5 * (4 * MB + 64)}


def test_one_device_sends_nothing():
    assert theory(1, 1, 1) == {}


def test_a_split_model_is_gathered_twice_and_its_gradients_scattered():
    assert theory(1, 8, 1) == {
        "all-reduce": 2 * 7 / 8 * 64,  # The bias is not split.
        "all-gather": 2 * 7 / 8 * 4 * MB,
        "reduce-scatter": 7 / 8 * 4 * MB,
    }


def test_copies_of_a_split_model_sum_the_share_of_each_device():
    found = theory(2, 4, 1)
    assert found["all-gather"] == 2 * 3 / 4 * 4 * MB
    assert found["all-reduce"] == 2 * 1 / 2 * MB + 2 * 7 / 8 * 64


def test_a_layer_split_by_tensor_sums_activations_four_times():
    # 4 sums x 3 layers x 2 x 1/2 of 1,000 bytes; gradients stay where they are.
    assert theory(1, 1, 2) == {"all-reduce": 4 * 3 * 1000.0}
    assert theory(1, 1, 2, remat="full") == {"all-reduce": 5 * 3 * 1000.0}


def test_every_micro_batch_gathers_anew():
    once, thrice = theory(1, 8, 1), theory(1, 8, 1, accumulate=3)
    assert thrice == {kind: 3 * sent for kind, sent in once.items()}


def test_the_compiled_module_of_a_step_sends_what_theory_says():
    mesh = jax.make_mesh((2, 2, 2), AXES, axis_types=AUTO)
    L, D, M, B, T = 4, 16, 32, 8, 5

    def place(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    def loss(kernels, z):
        def layer(z, kernel):
            return z + jax.nn.gelu(z @ kernel[0]) @ kernel[1], None

        return jnp.mean(jax.lax.scan(layer, z, kernels)[0] ** 2)

    def step(kernels, z):
        grads = jax.grad(loss)(kernels, z)
        return jax.tree.map(lambda kernel, grad: kernel - grad, kernels, grads)

    places = place(None, "fsdp", "tensor"), place(None, "tensor", "fsdp")
    kernels = tuple(
        jax.ShapeDtypeStruct((L, *shape), jnp.float32, sharding=where)
        for shape, where in zip(((D, M), (M, D)), places)
    )
    z = jax.ShapeDtypeStruct((B, T, D), jnp.float32, sharding=place(("data", "fsdp")))
    program = jax.jit(step, out_shardings=places).lower(kernels, z).compile()
    found = communication.read(program.as_text())

    whole = 2 * L * D * M * 4 / 2  # Bytes of both kernels of all layers, split by tensor.
    activations = B / 4 * T * D * 4
    assert communication.sent_by_kind(found) == {
        # Over data, a share of the gradients; over tensor, once forward and once backward.
        "all-reduce": 2 * 1 / 2 * whole / 2 + 2 * L * 2 * 1 / 2 * activations,
        "all-gather": 2 * 1 / 2 * whole,
        SLICED: 2 * 1 / 2 * whole,  # Twice a reduce-scatter's.
    }
    strides = {(each.kind, each.devices, each.stride) for each in found}
    assert strides == {
        ("all-gather", 2, 2),
        (SLICED, 2, 2),
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
    ("groups", "devices", "stride"),
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
def test_groups_are_read_in_every_form_and_loops_times_their_trips(groups, devices, stride):
    found = communication.read(MODULE.replace("GROUPS", groups).replace("TRIPS", TRIPS))
    assert found == [Traffic("all-reduce", devices, stride, 5 * 8 * 4 * 2)]


def test_what_cannot_be_read_is_no_number():
    with pytest.raises(ValueError, match="no known trip count"):
        communication.read(MODULE.replace("GROUPS", "{}").replace("TRIPS", ""))
    with pytest.raises(ValueError, match="of another form"):
        communication.read(MODULE.replace("GROUPS", "ring").replace("TRIPS", TRIPS))


DEVICE = Accelerator("card", "card", 1.0, 1.0, 1.0, 1.0, 100.0, 8, 10.0, "none")


def test_links_carry_what_stays_in_a_machine_and_the_network_the_rest():
    reduced = Traffic("all-reduce", 8, 1, 800.0)
    assert reduced.seconds(DEVICE) == pytest.approx(2 * 7 / 8 * 800 / 100)
    # 16 devices: 8 in each of two machines; each device sends an eighth over the network.
    spread = Traffic("all-reduce", 16, 1, 800.0)
    expected = 2 * (7 / 8 * 800 / 100 + 1 / 2 * 100 / 10)
    assert spread.seconds(DEVICE) == pytest.approx(expected)
    # Devices eight apart are each in another machine.
    apart = Traffic("all-gather", 4, 8, 800.0)
    assert apart.seconds(DEVICE) == pytest.approx(3 / 4 * 800 / 10)


def test_a_pod_without_a_known_network_is_named():
    device = Accelerator("pod", "pod", 1.0, 1.0, 1.0, 1.0, 100.0, 8, None, "none")
    with pytest.raises(ConfigError, match="pod: 16 devices are more than the 8"):
        Traffic("all-reduce", 16, 1, 1.0).seconds(device)
