"""Tests of the collectives of a step, the bytes sent and their time, against hand counts."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from vit_jax.errors import ConfigError
from vit_jax.planning import communication
from vit_jax.planning.accelerators import Accelerator
from vit_jax.planning.communication import Collective

AXES = ("data", "fsdp", "tensor")
AUTO = (AxisType.Auto,) * 3
MB = 2**20


def params_on(*shape: int) -> dict:
    """Returns a kernel of 4 MB, sharded for the mesh, and a replicated bias of 64 bytes."""
    mesh = AbstractMesh(shape, AXES, axis_types=AUTO)
    spec = PartitionSpec("fsdp", "tensor") if shape[2] > 1 else PartitionSpec("fsdp")
    spec = spec if shape[1] > 1 else PartitionSpec(*(None, *spec[1:]))
    specs = {"kernel": spec, "bias": PartitionSpec()}
    shapes = {"kernel": (1024, 1024), "bias": (16,)}
    return {
        name: jax.ShapeDtypeStruct(
            shapes[name], jnp.float32, sharding=NamedSharding(mesh, specs[name])
        )
        for name in specs
    }


def bytes_sent(*shape: int, **options) -> dict[str, float]:
    options = {"num_layers": 3, "activation_bytes": 1000.0} | options
    collectives = communication.expected_collectives(params_on(*shape), **options)
    return communication.bytes_sent_by_kind(collectives)


def test_data_parallel_training_all_reduces_the_gradients():
    # A ring of 4 devices sends 2 x 3/4 of the kernel and of the bias.
    assert bytes_sent(4, 1, 1) == {"all-reduce": 1.5 * (4 * MB + 64)}


def test_one_device_sends_no_bytes():
    assert bytes_sent(1, 1, 1) == {}


def test_fsdp_gathers_parameters_twice_and_scatters_gradients():
    assert bytes_sent(1, 8, 1) == {
        "all-reduce": 2 * 7 / 8 * 64,  # The bias is replicated.
        "all-gather": 2 * 7 / 8 * 4 * MB,
        "reduce-scatter": 7 / 8 * 4 * MB,
    }


def test_data_and_fsdp_all_reduce_the_gradient_shards():
    sent = bytes_sent(2, 4, 1)
    assert sent["all-gather"] == 2 * 3 / 4 * 4 * MB
    assert sent["all-reduce"] == 2 * 1 / 2 * MB + 2 * 7 / 8 * 64


def test_tensor_all_reduces_activations_four_times_per_layer():
    # 4 sums x 3 layers x 2 x 1/2 of 1,000 bytes; gradients are not communicated.
    assert bytes_sent(1, 1, 2) == {"all-reduce": 4 * 3 * 1000.0}
    assert bytes_sent(1, 1, 2, remat="full") == {"all-reduce": 5 * 3 * 1000.0}


def test_every_micro_batch_repeats_the_collectives():
    one, three = bytes_sent(1, 8, 1), bytes_sent(1, 8, 1, accumulate=3)
    assert three == {kind: 3 * sent for kind, sent in one.items()}


DEVICE = Accelerator("test", "test", 1.0, 1.0, 1.0, 1.0, 100.0, 8, 10.0, "none")


def test_seconds_uses_links_inside_and_the_network_between_machines():
    inside = Collective("all-reduce", 8, 1, 800.0)
    assert inside.seconds(DEVICE) == pytest.approx(2 * 7 / 8 * 800 / 100)
    # Two machines of 8 devices; each device sends an eighth over the network.
    across = Collective("all-reduce", 16, 1, 800.0)
    expected = 2 * (7 / 8 * 800 / 100 + 1 / 2 * 100 / 10)
    assert across.seconds(DEVICE) == pytest.approx(expected)
    # With a stride of 8, every device is in another machine.
    strided = Collective("all-gather", 4, 8, 800.0)
    assert strided.seconds(DEVICE) == pytest.approx(3 / 4 * 800 / 10)


def test_seconds_rejects_groups_larger_than_a_pod_without_known_network():
    device = Accelerator("pod", "pod", 1.0, 1.0, 1.0, 1.0, 100.0, 8, None, "none")
    with pytest.raises(ConfigError, match="pod: links connect at most 8 devices, not 16"):
        Collective("all-reduce", 16, 1, 1.0).seconds(device)
