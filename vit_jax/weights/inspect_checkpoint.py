"""Lists the arrays and metadata of a checkpoint or weights file without reading arrays."""

import math

from vit_jax.atomic_io import to_json
from vit_jax.checkpoints import layout
from vit_jax.checkpoints.local_copy import url_of
from vit_jax.errors import CheckpointError
from vit_jax.text import warn
from vit_jax.weights import families, location
from vit_jax.weights.reader import open_weights_file
from vit_jax.weights.tensor_table import format_shape
from vit_jax.weights.weights_folder import open_weights


def inspect_checkpoint(where: str, as_json: bool = False) -> str:
    """Returns a table of name, shape and dtype of every array, followed by the metadata.

    The metadata of a file has its format and its family, a row of `models.encoders.ENCODERS`.
    Arrays of a file that are not parameters of the model have a `use`: another tower, or ignored.
    Checkpoints of this package also list the CRC-32C of each array, the step and the config.

    Args:
      where: location of weights, as `load.load` takes it.
      as_json: returns one JSON object instead of a table.

    Raises:
      CheckpointError: there are no readable weights.
    """
    path, entry, given = location.resolve(where)
    if location.is_weights_file(path):
        archive = open_weights(path)
        arrays = {
            name: {"shape": list(info.shape), "dtype": info.dtype}
            for name, info in archive.arrays.items()
        }
        metadata = {**archive.metadata, "file": str(archive.path)}
        try:
            file = open_weights_file(path, given=given)
            families.report(file.metadata, str(path), entry is not None)
            metadata |= {"format": file.format.name, "family": file.metadata.family or "unknown"}
            for names, use in ((file.ignored, "ignored"), (file.other_tower, "another tower")):
                for name in arrays.keys() & set(names):
                    arrays[name]["use"] = use
        except CheckpointError as error:  # Any file can be inspected.
            warn(error)
        params = [name for name, array in arrays.items() if "use" not in array]
    else:
        arrays = layout.read_manifest(path)["leaves"]
        params = [name for name in arrays if name.startswith("params/")]
        data, meta = (layout.read_item(path, item) for item in ("data", "meta"))
        metadata = {"checkpoint": url_of(path), "step": int(path.name), "data": data, **meta}
    metadata["parameters"] = sum(math.prod(arrays[name]["shape"]) for name in params)
    if as_json:
        return to_json({**metadata, "leaves": arrays}, indent=2)
    width = max(map(len, arrays), default=0)
    lines = [
        f"{name:{width}}  {format_shape(array['shape']):>18}  {array['dtype']:8}"
        + (f"  {array['crc32c']:08x}" if "crc32c" in array else f"  {array.get('use', '')}")
        for name, array in arrays.items()
    ]
    lines = [line.rstrip() for line in lines]
    lines += [f"{_printable(name)}: {_printable(value)}" for name, value in metadata.items()]
    return "\n".join(lines)


def _printable(value) -> str:
    """The value as text; as JSON unless it is printable, so that no file controls the terminal."""
    return value if isinstance(value, str) and value.isprintable() else to_json(value)
