"""Parser of the collectives in the HLO text of a compiled XLA module."""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vit_jax.planning.communication import ALL_REDUCE_SLICE, KINDS, Collective

# HLO text: `%name = f32[2,3]{1,0} opcode(%operands), attributes`, in named computations.
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:body|calls|to_apply|\w+_computations?)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_IOTA_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{((?:'\w+',?)+)\}"
)
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]+)\}")
# Instructions through which a result may pass before it is sliced.
_PASS_THROUGH = ("get-tuple-element", "bitcast", "copy", "convert", "transpose", "reshape")


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
        """Names of the computations that the instruction calls."""
        return re.findall(r"[\w.\-]+", " ".join(_CALLED.findall(self.rest)))


class _Computation(dict[str, _Instruction]):
    """Instructions of a computation by name."""

    @functools.cached_property
    def users(self) -> dict[str, list[_Instruction]]:
        """Instructions that use each result."""
        users = collections.defaultdict(list)
        for instruction in self.values():
            for operand in instruction.operands:
                users[operand].append(instruction)
        return users


def parse_collectives(hlo: str) -> list[Collective]:
    """Returns the collectives of a compiled module.

    Collectives in a loop are multiplied by its trip count; all branches of a conditional count.

    Args:
      hlo: text of the module, from `compiled.as_text()`.

    Raises:
      ValueError: a loop with collectives has no known trip count, or the text of the device
        groups is not understood.
    """
    computations: dict[str, _Computation] = {}
    entry, current = "", _Computation()
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header[1]] = _Computation()
            entry = header[1] if line.startswith("ENTRY") else entry
        elif match := _INSTRUCTION.match(line):
            current[match[1]] = _Instruction(*match.groups())
    partitions = re.search(r"num_partitions=(\d+)", hlo)
    num_devices = int(partitions[1]) if partitions else 1
    return list(_walk(computations, entry, num_devices))


def _walk(computations: dict, name: str, num_devices: int) -> Iterator[Collective]:
    """Yields the collectives of a computation and of those that it calls."""
    for instruction in computations[name].values():
        if instruction.opcode.removesuffix("-start") in KINDS:
            yield from _collectives_of(instruction, computations, name, num_devices)
            continue
        inner = [
            collective
            for called in instruction.called
            for collective in _walk(computations, called, num_devices)
        ]
        if inner and instruction.opcode == "while":
            trip_count = _TRIP_COUNT.search(instruction.rest)
            if trip_count is None:
                raise ValueError(
                    f"{instruction.name}: loop with collectives has no known trip count"
                )
            inner = [
                dataclasses.replace(each, num_bytes=each.num_bytes * int(trip_count[1]))
                for each in inner
            ]
        yield from inner


def _collectives_of(
    instruction: _Instruction, computations: dict, name: str, num_devices: int
) -> Iterator[Collective]:
    """Yields a Collective for each array of an instruction."""
    kind = instruction.opcode.removesuffix("-start")
    group_size, stride = _group(instruction.rest, num_devices)
    if group_size == 1:
        return
    for number, operand in enumerate(instruction.operands):
        size = _num_bytes(computations[name][operand].type)
        if kind == "all-reduce" and _is_sliced(instruction, computations, name, number):
            yield Collective(ALL_REDUCE_SLICE, group_size, stride, size)
        else:
            full_size = size * (group_size if kind == "all-gather" else 1)
            yield Collective(kind, group_size, stride, full_size)


def _num_bytes(type: str) -> float:
    """Returns the bytes of an array type or of a tuple of arrays."""
    total = 0.0
    for letters, width, shape in _ARRAY.findall(type):
        bits = 8 if letters == "pred" else int(width or 0)
        total += bits / 8 * math.prod(int(length) for length in shape.split(",") if length)
    return total


def _group(rest: str, num_devices: int) -> tuple[int, int]:
    """Returns the size of a device group and the stride between its devices."""
    if "source_target_pairs" in rest:
        source, target = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest).groups()
        return 2, abs(int(source) - int(target)) or 1
    if listed := _LISTED_GROUPS.search(rest):
        members = _numbers(listed[1])
    elif iota := _IOTA_GROUPS.search(rest):
        members = _iota(iota[3], iota[4]).reshape(-1, int(iota[2]))[0].tolist()
    elif mesh := _MESH_GROUPS.search(rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        shape = [int(size) for size in sizes.values()]
        devices = _iota(mesh[2] or ",".join(sizes.values()), mesh[3]).reshape(shape)
        in_group = [f"'{axis}'" in mesh[4] for axis in sizes]
        index = tuple(slice(None) if is_axis else 0 for is_axis in in_group)
        members = devices[index].ravel().tolist()
    elif "replica_groups={}" in rest:
        members = list(range(num_devices))
    else:
        raise ValueError(f"unknown format of replica_groups: {rest[:200]}")
    return len(members), abs(members[1] - members[0]) if len(members) > 1 else 1


def _iota(shape: str, order: str | None) -> np.ndarray:
    """Returns 0, 1, 2, ... in a shape such as '2,4', with axes permuted as in '1,0'."""
    lengths = _numbers(shape)
    numbers = np.arange(math.prod(lengths)).reshape(lengths)
    return numbers.transpose(_numbers(order)) if order else numbers


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _is_sliced(instruction: _Instruction, computations: dict, name: str, number: int = 0) -> bool:
    """Returns True if all users of an instruction's result first take a slice of it.

    Args:
      instruction: the instruction.
      computations: all computations of the module.
      name: name of the computation that contains the instruction.
      number: index of the result, if the instruction returns a tuple.
    """
    users = computations[name].users.get(instruction.name, [])
    if instruction.type.startswith("("):
        users = [user for user in users if f"index={number}," in f"{user.rest},"]
    return bool(users) and all(
        user.opcode == "dynamic-slice"
        or (user.opcode in _PASS_THROUGH and _is_sliced(user, computations, name))
        or (user.opcode == "fusion" and _fusion_slices(user, instruction.name, computations))
        for user in users
    )


def _fusion_slices(fusion: _Instruction, operand: str, computations: dict) -> bool:
    """Returns True if a fusion first takes a slice of an operand."""
    name = fusion.called[0]
    number = fusion.operands.index(operand)
    parameter = next(
        instruction
        for instruction in computations[name].values()
        if instruction.opcode == "parameter" and instruction.rest.startswith(f"{number})")
    )
    return _is_sliced(parameter, computations, name)
