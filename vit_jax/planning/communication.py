"""Bytes that devices send each other in a training step, and the time this takes.

A step consists of `Collective`s over groups of devices. With a ring algorithm on n devices, each
device sends (n - 1)/n of an array to gather or scatter it, and twice that to all-reduce it; this
is the minimum (Patarasuk and Yuan, doi:10.1016/j.jpdc.2008.09.002).
"""

import collections
import dataclasses
import math
from collections.abc import Iterable

from vit_jax.errors import ConfigError
from vit_jax.models import trees
from vit_jax.planning.accelerators import Accelerator

# How many times a ring passes the array, up to the factor (n - 1)/n.
PASSES = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1}
ALL_REDUCE_SLICE = "all-reduce + slice"  # XLA's implementation of reduce-scatter on CPUs.
KINDS = (*PASSES, ALL_REDUCE_SLICE, "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind over device groups of one shape, in one step."""

    kind: str  # One of KINDS.
    group_size: int  # Number of devices in a group.
    stride: int  # Difference of the indices of successive devices of a group; 1 for neighbours.
    num_bytes: float  # Size of the full arrays.

    def bytes_sent(self) -> float:
        """Returns the bytes that one device sends."""
        return self._passes() * self.num_bytes * (self.group_size - 1) / self.group_size

    def seconds(self, device: Accelerator) -> float:
        """Returns the time on the links, and on the network between machines or pods.

        A group that is larger than a machine or pod first works inside each of these, so that
        every device then sends its shard of the array over the network.

        Raises:
          ConfigError: the network bandwidth of the accelerator is unknown.
        """
        inside = min(self.group_size, max(device.link_devices // self.stride, 1))
        outside = math.ceil(self.group_size / inside)
        links = (inside - 1) / inside / device.link_bandwidth
        if outside == 1:
            return self._passes() * self.num_bytes * links
        if device.network_bandwidth is None:
            raise ConfigError(
                f"{device.title}: links connect at most {device.link_devices} devices, not "
                f"{self.group_size}, and the network bandwidth is unknown; plan with fewer "
                "devices or another --accelerator."
            )
        network = (outside - 1) / outside / inside / device.network_bandwidth
        return self._passes() * self.num_bytes * (links + network)

    def _passes(self) -> float:
        if self.kind == "collective-permute":
            return self.group_size / (self.group_size - 1)  # Each device sends its array once.
        return PASSES["all-reduce" if self.kind == ALL_REDUCE_SLICE else self.kind]


def bytes_sent_by_kind(collectives: Iterable[Collective]) -> dict[str, float]:
    """Returns the bytes that one device sends in a step for each kind, in the order of KINDS."""
    totals: dict[str, float] = collections.Counter()
    for collective in collectives:
        totals[collective.kind] += collective.bytes_sent()
    return {kind: totals[kind] for kind in KINDS if totals[kind]}


def total_seconds(collectives: Iterable[Collective], device: Accelerator) -> float:
    """Returns the time of all collectives in sequence, without overlap with computation."""
    return sum(collective.seconds(device) for collective in collectives)


def expected_collectives(
    params,
    *,
    num_layers: int,
    activation_bytes: float,
    remat: str = "none",
    accumulate: int = 1,
    gradients_per_step: int = 1,
    teacher_activation_bytes: float | None = None,
) -> list[Collective]:
    """Returns the collectives that a training step needs in theory.

    Parameters split by `fsdp` are gathered for the forward pass and again for the backward pass,
    and their gradients are reduce-scattered; gradients are all-reduced over all devices that have
    other examples. A layer split by `tensor` all-reduces the outputs of attention and MLP, and
    in the backward pass the gradients of their inputs (arXiv:1909.08053, figure 4); with
    remat="full" the first of these is repeated. Scalars are ignored.

    Args:
      params: ShapeDtypeStructs with shardings.
      num_layers: number of layers.
      activation_bytes: bytes of the activations B T D of a micro-batch on one device.
      remat: config.model.remat.
      accumulate: number of micro-batches in a step.
      gradients_per_step: gradients computed of every micro-batch; 2 for SAM.
      teacher_activation_bytes: the same as `activation_bytes` for a teacher, which has the
        parameters' shapes and computes targets of the whole batch; None for no teacher.
    """
    leaves = list(trees.flatten(params).values())
    mesh = leaves[0].sharding.mesh.shape
    data, fsdp, tensor = (mesh[axis] for axis in ("data", "fsdp", "tensor"))
    sharded = replicated = 0.0  # Bytes of parameters that `fsdp` splits, and of the others.
    for leaf in leaves:
        axes = leaf.sharding.spec
        num_bytes = trees.num_bytes(leaf) / (tensor if "tensor" in axes else 1)
        if "fsdp" in axes:
            sharded += num_bytes
        else:
            replicated += num_bytes
    sums_per_layer = 2 + 2 + (remat == "full")
    per_gradient = [
        Collective("all-gather", fsdp, tensor, 2 * sharded),
        Collective("reduce-scatter", fsdp, tensor, sharded),
        Collective("all-reduce", data, fsdp * tensor, sharded / fsdp),
        Collective("all-reduce", data * fsdp, tensor, replicated),
        Collective("all-reduce", tensor, 1, sums_per_layer * num_layers * activation_bytes),
    ]
    num_gradients = accumulate * gradients_per_step
    collectives = [
        dataclasses.replace(each, num_bytes=num_gradients * each.num_bytes) for each in per_gradient
    ]
    if teacher_activation_bytes is not None:
        collectives += [
            Collective("all-gather", fsdp, tensor, sharded),
            Collective("all-reduce", tensor, 1, 2 * num_layers * teacher_activation_bytes),
        ]
    return [each for each in collectives if each.group_size > 1 and each.num_bytes]
