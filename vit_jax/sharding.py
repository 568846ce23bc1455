"""The mesh, and one table of rules for what lies where on it.

Axes: `data` copies the model, `fsdp` splits it; both split the batch. Rules match names,
never model classes, and an optimiser's state follows the parameter whose name ends its own.
"""

import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax import trees
from vit_jax.errors import ConfigError

AXES = ("data", "fsdp")

# First match wins. 'split' divides the longest divisible dimension over `fsdp`.
RULES = (
    (r"(^|/)kernel$", "split"),
    (r".*", "replicate"),
)


def make_mesh(data: int = -1, fsdp: int = 1, devices=None) -> Mesh:
    """A mesh of all devices; -1 for one axis means all that are left.

    Raises ConfigError, with the possible sizes, when the axes do not multiply to them.
    """
    devices = jax.devices() if devices is None else devices
    num, sizes = len(devices), {"data": data, "fsdp": fsdp}
    known = data * fsdp if -1 not in sizes.values() else max(data, fsdp)
    if (known != num) if -1 not in sizes.values() else num % known:
        pairs = ", ".join(f"{num // f}x{f}" for f in range(1, num + 1) if num % f == 0)
        raise ConfigError(
            f"mesh data:{data},fsdp:{fsdp} does not fit {num} devices; data x fsdp can be {pairs}."
        )
    shape = tuple(num // known if size == -1 else size for size in sizes.values())
    # Linen needs Auto axes; `make_mesh` would make Explicit ones.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises ConfigError, with the nearest sizes, for a batch that devices cannot share."""
    parts = mesh.size * accumulate
    if batch_size % parts:
        below = batch_size // parts * parts
        near = [str(size) for size in (below, below + parts) if size]
        times = f" times accumulate={accumulate}" if accumulate > 1 else ""
        raise ConfigError(
            f"batch_size {batch_size} is not divisible by {mesh.size} devices{times}; "
            f"nearest: {', '.join(near)}."
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same everywhere."""
    return NamedSharding(mesh, PartitionSpec())


def spec_for(name: str, shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """Where the array of that name lies, by the first rule of RULES that matches."""
    rule = next(rule for pattern, rule in RULES if re.search(pattern, name))
    divisible = [axis for axis, length in enumerate(shape) if length % fsdp == 0]
    if rule == "replicate" or fsdp == 1 or not divisible:
        return PartitionSpec()
    longest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * longest, "fsdp")


def tree_shardings(tree, mesh: Mesh):
    """A NamedSharding for every leaf of a tree of arrays or of their shapes."""
    fsdp = mesh.shape["fsdp"]
    return trees.map_with_names(
        lambda name, leaf: NamedSharding(mesh, spec_for(name, leaf.shape, fsdp)), tree
    )


def bytes_per_device(tree, shardings) -> int:
    """Bytes of a tree that one device holds."""
    sizes = jax.tree.map(
        lambda leaf, sharding: int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize,
        tree,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))
