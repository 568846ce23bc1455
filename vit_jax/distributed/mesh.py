"""The mesh, and one table of rules for what lies where on it.

Axes: `data` copies the model, `fsdp` splits each array, `tensor` splits heads and MLP width;
the first two split the batch. Rules match names, never model classes, and an optimiser's state
follows the parameter whose name ends its own.
"""

import itertools
import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax import trees
from vit_jax.errors import ConfigError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
LARGE = 2**20  # Bytes of a parameter that is named where `fsdp` cannot split it.

# What the dimensions of an array are, in the alphabet of models/vit.py; the first match counts.
DIMENSIONS = (
    (r"(^|/)(query|key|value)/kernel$", "D h d"),
    (r"(^|/)(query|key|value)/bias$", "h d"),
    (r"(^|/)relative_embedding$", "o h d"),
    (r"(^|/)out/kernel$", "h d D"),
    (r"(^|/)Dense_0/kernel$", "D M"),
    (r"(^|/)Dense_0/bias$", "M"),
    (r"(^|/)Dense_1/kernel$", "M D"),
)
TENSOR = "hdM"  # Split over `tensor`: heads, or else the size of one; the MLP's width.
FSDP = r"(^|/)(kernel|\w*_embedding)$"  # Split over `fsdp`, along the longest dimension left.


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """A mesh of all devices; -1 for one axis means all that are left.

    Neighbouring devices share what talks most: `tensor` is the innermost axis.
    Raises ConfigError, with the possible sizes, when the axes do not multiply to them.
    """
    devices = jax.devices() if devices is None else devices
    shape = fit(len(devices), data, fsdp, tensor)
    # Linen needs Auto axes; `make_mesh` would make Explicit ones.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def fit(num_devices: int, data: int, fsdp: int, tensor: int) -> tuple[int, int, int]:
    """The sizes of the axes, that of -1 found; raises ConfigError where there are none."""
    sizes = (data, fsdp, tensor)
    known = math.prod(size for size in sizes if size != -1)
    if num_devices % known or (-1 not in sizes and known != num_devices):
        raise ConfigError(
            f"mesh data:{data},fsdp:{fsdp},tensor:{tensor} does not fit {num_devices} devices; "
            f"data x fsdp x tensor can be {_possible(num_devices)}."
        )
    return tuple(num_devices // known if size == -1 else size for size in sizes)


def _possible(num_devices: int, most: int = 16) -> str:
    divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    pairs = itertools.product(divisors, divisors)  # Of tensor and fsdp.
    fitting = [(t, f) for t, f in pairs if num_devices % (t * f) == 0]
    words = [f"{num_devices // (t * f)}x{f}x{t}" for t, f in fitting[:most]]
    return ", ".join(words) + (", ..." if len(fitting) > most else "")


def num_shares(mesh: Mesh) -> int:
    """How many parts the batch is cut into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises ConfigError, with the nearest sizes, for a batch that devices cannot share."""
    shares = num_shares(mesh)
    parts = shares * accumulate
    if batch_size % parts:
        below = batch_size // parts * parts
        near = [str(size) for size in (below, below + parts) if size]
        devices = f"{shares} devices" if shares == mesh.size else f"data x fsdp = {shares}"
        times = f" times accumulate={accumulate}" if accumulate > 1 else ""
        raise ConfigError(
            f"batch_size {batch_size} is not divisible by {devices}{times}; "
            f"nearest: {', '.join(near)}."
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples over the devices; those along `tensor` share theirs."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same everywhere."""
    return NamedSharding(mesh, PartitionSpec())


def spec_for(name: str, shape: tuple[int, ...], *, fsdp: int, tensor: int = 1) -> PartitionSpec:
    """Where the array of that name lies; raises ConfigError where `tensor` divides nothing."""
    axes: list[str | None] = [None] * len(shape)
    split = _split_by_tensor(name, shape, tensor)
    if split is not None:
        axes[split] = "tensor"
    left = [i for i, length in enumerate(shape) if i != split and length % fsdp == 0]
    if fsdp > 1 and left and re.search(FSDP, name):
        axes[max(left, key=lambda i: shape[i])] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def _split_by_tensor(name: str, shape: tuple[int, ...], tensor: int) -> int | None:
    """The dimension that `tensor` splits."""
    if tensor == 1:
        return None
    known = next((dims for pattern, dims in DIMENSIONS if re.search(pattern, name)), "").split()
    # Adafactor's statistics have the name of a parameter and fewer dimensions, or are a mere (1,).
    whole = len(known) != len(shape) or shape == (1,)
    candidates = [] if whole else [known.index(d) for d in TENSOR if d in known]
    if not candidates:
        return None
    for i in candidates:
        if shape[i] % tensor == 0:
            return i
    lengths = [shape[i] for i in candidates]
    sizes = [n for n in range(1, max(lengths) + 1) if any(length % n == 0 for length in lengths)]
    raise ConfigError(
        f"mesh.tensor={tensor} divides neither of {lengths} of {name}; "
        f"it can be one of {sizes} there."
    )


def tree_shardings(tree, mesh: Mesh):
    """A NamedSharding for every leaf of a tree of arrays or of their shapes."""
    sizes = {axis: mesh.shape[axis] for axis in ("fsdp", "tensor")}
    return trees.map_with_names(
        lambda name, leaf: NamedSharding(mesh, spec_for(name, leaf.shape, **sizes)), tree
    )


def bytes_per_device(tree, shardings) -> int:
    """Bytes of a tree that one device holds."""
    sizes = jax.tree.map(
        lambda leaf, place: _shard_bytes(leaf.shape, leaf.dtype, place), tree, shardings
    )
    return sum(jax.tree.leaves(sizes))


def _shard_bytes(shape: tuple[int, ...], dtype, sharding: NamedSharding) -> int:
    return int(np.prod(sharding.shard_shape(shape))) * dtype.itemsize


def left_whole(params) -> list[str]:
    """Parameters above 1 MB that no axis splits, though `fsdp` should; of all layers one name.

    Args:
      params: a tree of arrays, or of ShapeDtypeStructs with shardings.
    """
    names = [
        _kind(name)
        for name, leaf in trees.flatten(params).items()
        if leaf.sharding.mesh.shape["fsdp"] > 1
        and leaf.sharding.is_fully_replicated
        and math.prod(leaf.shape) * leaf.dtype.itemsize > LARGE
    ]
    return list(dict.fromkeys(names))


def _kind(name: str) -> str:
    """The name that equal arrays of all layers share."""
    return re.sub(r"(encoderblock|posembed)_\d+", r"\1_*", name)


def layout(params) -> list[dict]:
    """What lies where, a row for each kind of array: equal ones of all layers are one row.

    Args:
      params: as `left_whole` takes them.
    """
    kinds: dict[tuple, list] = {}
    for name, leaf in trees.flatten(params).items():
        kinds.setdefault((_kind(name), leaf.shape), []).append(leaf)
    rows = []
    for (name, shape), leaves in kinds.items():
        spec = [leaves[0].sharding.spec[i : i + 1] for i in range(len(shape))]
        axes = [f"{n}/{axis[0]}" if any(axis) else str(n) for n, axis in zip(shape, spec)]
        total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
        held = sum(_shard_bytes(leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves)
        rows.append(
            {
                "array": name,
                "of them": len(leaves),
                "shape / axis": " x ".join(axes) or "scalar",
                "MB": round(total / 1e6, 3),
                "MB per device": round(held / 1e6, 3),
            }
        )
    return rows
