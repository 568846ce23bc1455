"""What devices send each other in a training step: by theory, and as a compiled module says.

Both give `Traffic`: kinds of collectives over groups of devices. A ring over n devices makes each
send (n - 1)/n of an array to gather or to scatter it, and twice that to all-reduce it, which is
the least that can be sent (Patarasuk and Yuan, doi:10.1016/j.jpdc.2008.09.002).
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from vit_jax import trees
from vit_jax.errors import ConfigError
from vit_jax.planning.accelerators import Accelerator

ROUNDS = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "all-to-all": 1}
SLICED = "all-reduce + slice"  # How XLA scatters a sum on CPUs.
KINDS = (*ROUNDS, SLICED, "collective-permute")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one kind over groups of one shape, in one step."""

    kind: str  # One of KINDS.
    devices: int  # In a group.
    stride: int  # From one device of a group to the next: of neighbours, 1.
    payload: float  # Bytes of the arrays, whole.

    def sent(self) -> float:
        """Bytes that a device sends."""
        return self._rounds() * self.payload * (self.devices - 1) / self.devices

    def seconds(self, device: Accelerator) -> float:
        """Time on the links, and on the network where a group is larger than what links join.

        Then each machine or pod works on its own first, so that every device has a share of the
        array to send over the network. Raises ConfigError where no page tells its bandwidth.
        """
        inside = min(self.devices, max(device.link_devices // self.stride, 1))
        outside = math.ceil(self.devices / inside)
        links = (inside - 1) / inside / device.link_bandwidth
        if outside == 1:
            return self._rounds() * self.payload * links
        if device.network_bandwidth is None:
            raise ConfigError(
                f"{device.title}: {self.devices} devices are more than the {device.link_devices} "
                "that its links join, and no figure of its network is known."
            )
        network = (outside - 1) / outside / inside / device.network_bandwidth
        return self._rounds() * self.payload * (links + network)

    def _rounds(self) -> float:
        if self.kind == "collective-permute":
            return self.devices / (self.devices - 1)  # All of it, once.
        return ROUNDS["all-reduce" if self.kind == SLICED else self.kind]


def sent_by_kind(traffic: Iterable[Traffic]) -> dict[str, float]:
    """Bytes that a device sends in a step, by kind, in the order of KINDS."""
    totals: dict[str, float] = collections.Counter()
    for each in traffic:
        totals[each.kind] += each.sent()
    return {kind: totals[kind] for kind in KINDS if totals[kind]}


def seconds(traffic: Iterable[Traffic], device: Accelerator) -> float:
    """Time of all, one after the other and not behind any computation."""
    return sum(each.seconds(device) for each in traffic)


def theory(
    params,
    *,
    num_layers: int,
    activations: float,
    remat: str = "none",
    accumulate: int = 1,
    gradients_per_step: int = 1,
) -> list[Traffic]:
    """The collectives that a step on the mesh of `params` needs.

    Parameters split by `fsdp` are gathered for the forward pass and again for the backward, and
    their gradients scattered; every gradient is summed over all devices that saw other examples.
    A layer split by `tensor` sums the outputs of attention and of the MLP, and in the backward
    pass the gradients of their inputs (arXiv:1909.08053, figure 4); computed again, the first of
    these sums is made again. Scalars are left out.

    Args:
      params: ShapeDtypeStructs with shardings.
      activations: bytes of the B T D that a device holds of one micro-batch.
      gradients_per_step: gradients taken of every micro-batch: two for SAM.
    """
    leaves = list(trees.flatten(params).values())
    mesh = leaves[0].sharding.mesh.shape
    data, fsdp, tensor = (mesh[axis] for axis in ("data", "fsdp", "tensor"))
    whole = collections.Counter()  # Bytes of what is split by `fsdp`, and of what is not.
    for leaf in leaves:
        axes = leaf.sharding.spec
        size = math.prod(leaf.shape) * leaf.dtype.itemsize / (tensor if "tensor" in axes else 1)
        whole["fsdp" in axes] += size
    sums = 2 + 2 + (remat == "full")
    once = [
        Traffic("all-gather", fsdp, tensor, 2 * whole[True]),
        Traffic("reduce-scatter", fsdp, tensor, whole[True]),
        Traffic("all-reduce", data, fsdp * tensor, whole[True] / fsdp),
        Traffic("all-reduce", data * fsdp, tensor, whole[False]),
        Traffic("all-reduce", tensor, 1, sums * num_layers * activations),
    ]
    times = accumulate * gradients_per_step
    return [
        dataclasses.replace(each, payload=times * each.payload)
        for each in once
        if each.devices > 1 and each.payload
    ]


# HLO text: `%name = f32[2,3]{1,0} opcode(%operands), attributes`, in named computations.
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:body|calls|to_apply|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{((?:'\w+',?)+)\}"
)
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_PASSED_ON = ("get-tuple-element", "bitcast", "copy", "convert", "transpose", "reshape")


class _Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    rest: str  # Operands and attributes.

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split(")", 1)[0])

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        return re.findall(r"[\w.\-]+", " ".join(_CALLED.findall(self.rest)))


class _Computation(dict[str, _Instruction]):
    """Instructions by name."""

    @functools.cached_property
    def users(self) -> dict[str, list[_Instruction]]:
        found = collections.defaultdict(list)
        for each in self.values():
            for operand in each.operands:
                found[operand].append(each)
        return found


def read(hlo: str) -> list[Traffic]:
    """The collectives of a compiled module's text, those in a loop times its trip count.

    Of the branches of a condition, all count. Raises ValueError where a loop with collectives
    has no known trip count.
    """
    computations: dict[str, _Computation] = {}
    entry, current = "", _Computation()
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header[1]] = _Computation()
            entry = header[1] if line.startswith("ENTRY") else entry
        elif found := _INSTRUCTION.match(line):
            current[found[1]] = _Instruction(*found.groups())
    partitions = re.search(r"num_partitions=(\d+)", hlo)
    return list(_walk(computations, entry, int(partitions[1]) if partitions else 1))


def _walk(computations: dict, name: str, num_devices: int) -> Iterator[Traffic]:
    for each in computations[name].values():
        if each.opcode.removesuffix("-start") in KINDS:
            yield from _traffic(each, computations, name, num_devices)
            continue
        inner = [t for called in each.called for t in _walk(computations, called, num_devices)]
        if inner and each.opcode == "while":
            trips = _TRIPS.search(each.rest)
            if trips is None:
                raise ValueError(f"{each.name}: a loop with collectives, and no known trip count")
            inner = [dataclasses.replace(t, payload=t.payload * int(trips[1])) for t in inner]
        yield from inner


def _traffic(each: _Instruction, computations: dict, name: str, num_devices: int):
    """What one instruction sends, an entry for each of its arrays."""
    kind = each.opcode.removesuffix("-start")
    devices, stride = _group(each.rest, num_devices)
    if devices == 1:
        return
    for number, operand in enumerate(each.operands):
        size = _bytes(computations[name][operand].type)
        if kind == "all-reduce" and _is_sliced(each, computations, name, number):
            yield Traffic(SLICED, devices, stride, size)
        else:
            yield Traffic(kind, devices, stride, size * (devices if kind == "all-gather" else 1))


def _bytes(type: str) -> float:
    """Of an array, or of a tuple of them."""
    total = 0.0
    for letters, width, shape in _ARRAY.findall(type):
        bits = 8 if letters == "pred" else int(width or 0)
        total += bits / 8 * math.prod(int(length) for length in shape.split(",") if length)
    return total


def _group(rest: str, num_devices: int) -> tuple[int, int]:
    """Devices in a group, and how far each is from the next."""
    if "source_target_pairs" in rest:
        first, second = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest).groups()
        return 2, abs(int(first) - int(second)) or 1
    if listed := _LISTED.search(rest):
        members = _numbers(listed[1])
    elif iota := _IOTA.search(rest):
        members = _numbered(iota[3], iota[4]).reshape(-1, int(iota[2]))[0].tolist()
    elif mesh := _MESH.search(rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        shape = [int(size) for size in sizes.values()]
        devices = _numbered(mesh[2] or ",".join(sizes.values()), mesh[3]).reshape(shape)
        mine = [f"'{axis}'" in mesh[4] for axis in sizes]
        members = devices[tuple(slice(None) if axis else 0 for axis in mine)].ravel().tolist()
    elif "replica_groups={}" in rest:
        members = list(range(num_devices))
    else:
        raise ValueError(f"replica groups of another form: {rest[:200]}")
    return len(members), abs(members[1] - members[0]) if len(members) > 1 else 1


def _numbered(shape: str, order: str | None) -> np.ndarray:
    """0, 1, 2, ... in a shape such as '2,4', its axes put in an order such as '1,0'."""
    lengths = _numbers(shape)
    numbers = np.arange(math.prod(lengths)).reshape(lengths)
    return numbers.transpose(_numbers(order)) if order else numbers


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _is_sliced(each: _Instruction, computations: dict, name: str, number: int = 0) -> bool:
    """Whether all that use an instruction's result of that number first take a slice of it."""
    users = computations[name].users.get(each.name, [])
    if each.type.startswith("("):
        users = [user for user in users if f"index={number}," in f"{user.rest},"]
    return bool(users) and all(
        user.opcode == "dynamic-slice"
        or (user.opcode in _PASSED_ON and _is_sliced(user, computations, name))
        or (user.opcode == "fusion" and _slices_first(user, each.name, computations))
        for user in users
    )


def _slices_first(fusion: _Instruction, operand: str, computations: dict) -> bool:
    """Whether a fusion takes a slice of that operand before anything else."""
    inside = fusion.called[0]
    number = fusion.operands.index(operand)
    parameter = next(
        each
        for each in computations[inside].values()
        if each.opcode == "parameter" and each.rest.startswith(f"{number})")
    )
    return _is_sliced(parameter, computations, inside)
