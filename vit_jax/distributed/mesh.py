"""Device mesh and one table of sharding rules.

Mesh axes: `data` replicates the model, `fsdp` splits each array, `tensor` splits the attention
heads and the MLP width. `data` and `fsdp` split the batch. The rules match parameter names, never
model classes; the optimizer state of a parameter has the sharding of the parameter, because its
name ends with the parameter's name.
"""

import itertools
import math
import re

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import ConfigError
from vit_jax.models import trees

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
LARGE = 2**20  # Bytes from which a parameter that `fsdp` cannot split is reported.

# Dimensions of arrays in the alphabet of models/vit.py; the first matching pattern applies.
DIMENSIONS = (
    (r"(^|/)(query|key|value)/kernel$", "D h d"),
    (r"(^|/)(query|key|value)/bias$", "h d"),
    (r"(^|/)relative_embedding$", "o h d"),
    (r"(^|/)out/kernel$", "h d D"),
    (r"(^|/)Dense_(0|gate)/kernel$", "D M"),
    (r"(^|/)Dense_(0|gate)/bias$", "M"),
    (r"(^|/)Dense_1/kernel$", "M D"),
)
# Dimensions that `tensor` splits: the heads, or else the width of a head; the MLP width.
TENSOR = "hdM"
FSDP = r"(^|/)(kernel|\w*_embedding)$"  # `fsdp` splits the longest remaining dimension of these.


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices=None) -> Mesh:
    """Returns a mesh of all devices.

    `tensor`, the axis with the most communication, is the innermost axis: its devices are
    neighbours.

    Args:
      data, fsdp, tensor: sizes of the axes; -1 for one axis takes all remaining devices.
      devices: devices to use; all by default.

    Raises:
      ConfigError: the product of the sizes is not the number of devices; lists valid sizes.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(len(devices), data, fsdp, tensor)
    # Flax Linen needs Auto axes; the default of `jax.make_mesh` is Explicit.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def abstract_mesh(num_devices: int, data: int = -1, fsdp: int = 1, tensor: int = 1) -> AbstractMesh:
    """Returns the mesh of a number of devices, which need not exist; see `make_mesh`."""
    shape = mesh_shape(num_devices, data, fsdp, tensor)
    return AbstractMesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(num_devices: int, data: int, fsdp: int, tensor: int) -> tuple[int, int, int]:
    """Returns the axis sizes with -1 resolved; raises ConfigError if they do not fit."""
    sizes = (data, fsdp, tensor)
    known = math.prod(size for size in sizes if size != -1)
    if num_devices % known or (-1 not in sizes and known != num_devices):
        raise ConfigError(
            f"mesh data:{data},fsdp:{fsdp},tensor:{tensor} does not fit {num_devices} devices; "
            f"data x fsdp x tensor can be {_valid_shapes(num_devices)}."
        )
    return tuple(num_devices // known if size == -1 else size for size in sizes)


def _valid_shapes(num_devices: int, max_shown: int = 16) -> str:
    divisors = [n for n in range(1, num_devices + 1) if num_devices % n == 0]
    valid = [
        (tensor, fsdp)
        for tensor, fsdp in itertools.product(divisors, divisors)
        if num_devices % (tensor * fsdp) == 0
    ]
    shapes = [f"{num_devices // (t * f)}x{f}x{t}" for t, f in valid[:max_shown]]
    return ", ".join(shapes) + (", ..." if len(valid) > max_shown else "")


def num_batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of parts that the batch is split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(batch_size: int, mesh: Mesh | AbstractMesh, accumulate: int = 1) -> None:
    """Raises ConfigError with the nearest valid sizes if the batch cannot be split evenly."""
    shards = num_batch_shards(mesh)
    parts = shards * accumulate
    if batch_size % parts:
        below = batch_size // parts * parts
        nearest = [str(size) for size in (below, below + parts) if size]
        devices = f"{shards} devices" if shards == mesh.size else f"data x fsdp = {shards}"
        times = f" times accumulate={accumulate}" if accumulate > 1 else ""
        raise ConfigError(
            f"batch_size {batch_size} is not divisible by {devices}{times}; "
            f"nearest: {', '.join(nearest)}."
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: split over `data` and `fsdp`, replicated over `tensor`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array with a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def partition_spec(
    name: str, shape: tuple[int, ...], *, fsdp: int, tensor: int = 1
) -> PartitionSpec:
    """Returns the PartitionSpec of an array.

    Args:
      name: name of the array, such as `head/kernel`.
      shape: its shape.
      fsdp, tensor: sizes of these mesh axes.

    Raises:
      ConfigError: `tensor` divides none of the dimensions that it could split.
    """
    axes: list[str | None] = [None] * len(shape)
    tensor_dim = _tensor_dimension(name, shape, tensor)
    if tensor_dim is not None:
        axes[tensor_dim] = "tensor"
    divisible = [i for i, size in enumerate(shape) if i != tensor_dim and size % fsdp == 0]
    if fsdp > 1 and divisible and re.search(FSDP, name):
        axes[max(divisible, key=lambda i: shape[i])] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def _tensor_dimension(name: str, shape: tuple[int, ...], tensor: int) -> int | None:
    """Returns the index of the dimension that `tensor` splits, or None."""
    if tensor == 1:
        return None
    dims = next((dims for pattern, dims in DIMENSIONS if re.search(pattern, name)), "").split()
    # Adafactor's statistics have a parameter's name, but fewer dimensions or the shape (1,).
    is_replicated = len(dims) != len(shape) or shape == (1,)
    candidates = [] if is_replicated else [dims.index(d) for d in TENSOR if d in dims]
    if not candidates:
        return None
    for i in candidates:
        if shape[i] % tensor == 0:
            return i
    lengths = [shape[i] for i in candidates]
    valid = [n for n in range(1, max(lengths) + 1) if any(length % n == 0 for length in lengths)]
    raise ConfigError(
        f"mesh.tensor={tensor} divides none of the dimensions {lengths} of {name}; "
        f"expected one of {valid}."
    )


def tree_shardings(tree, mesh: Mesh):
    """Returns a tree of NamedShardings for a tree of arrays or ShapeDtypeStructs."""
    sizes = {axis: mesh.shape[axis] for axis in ("fsdp", "tensor")}
    return trees.map_with_names(
        lambda name, leaf: NamedSharding(mesh, partition_spec(name, leaf.shape, **sizes)), tree
    )


def bytes_per_device(tree, shardings) -> int:
    """Returns the bytes of a tree on one device."""
    sizes = jax.tree.map(
        lambda leaf, sharding: _shard_bytes(leaf.shape, leaf.dtype, sharding), tree, shardings
    )
    return sum(jax.tree.leaves(sizes))


def _shard_bytes(shape: tuple[int, ...], dtype, sharding: NamedSharding) -> int:
    return int(np.prod(sharding.shard_shape(shape))) * dtype.itemsize


def unsharded_parameters(params) -> list[str]:
    """Returns the names of parameters above 1 MB that `fsdp` cannot split.

    A parameter of all layers is listed once, with `*` for the layer index.

    Args:
      params: a tree of arrays, or of ShapeDtypeStructs with shardings.
    """
    names = [
        _mask_layer_index(name)
        for name, leaf in trees.flatten(params).items()
        if leaf.sharding.mesh.shape["fsdp"] > 1
        and leaf.sharding.is_fully_replicated
        and trees.num_bytes(leaf) > LARGE
    ]
    return list(dict.fromkeys(names))


def _mask_layer_index(name: str) -> str:
    return re.sub(r"(encoderblock|posembed)_\d+", r"\1_*", name)


def sharding_table(params) -> list[dict]:
    """Returns a row for each parameter with its shape, mesh axes and size.

    Parameters of the same name and shape in all layers share a row.

    Args:
      params: a tree of arrays, or of ShapeDtypeStructs with shardings.
    """
    groups: dict[tuple, list] = {}
    for name, leaf in trees.flatten(params).items():
        groups.setdefault((_mask_layer_index(name), leaf.shape), []).append(leaf)
    rows = []
    for (name, shape), leaves in groups.items():
        spec = [leaves[0].sharding.spec[i : i + 1] for i in range(len(shape))]
        axes = [f"{n}/{axis[0]}" if any(axis) else str(n) for n, axis in zip(shape, spec)]
        total = trees.num_bytes(leaves)
        local = sum(_shard_bytes(leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves)
        rows.append(
            {
                "array": name,
                "count": len(leaves),
                "shape / axis": " x ".join(axes) or "scalar",
                "MB": round(total / 1e6, 3),
                "MB per device": round(local / 1e6, 3),
            }
        )
    return rows
