"""Reads weights files of all supported formats under the parameter names of this package."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.models.sizes import SIZES
from vit_jax.weights import formats
from vit_jax.weights import metadata as metadata_lib
from vit_jax.weights.archive import READABLE, Archive, ArrayInfo, open_archive
from vit_jax.weights.formats import Format
from vit_jax.weights.metadata import WeightsMetadata
from vit_jax.weights.tensor_layouts import (
    CLS,
    POSITIONS,
    X_POSITIONS,
    Y_POSITIONS,
    Row,
    stem_stride,
    tensor_to_params,
)

MAX_LISTED = 20  # Names listed in one message.
MAX_JSON = 2**22  # Bytes of a config.json.
MAX_LAYERS = 256
MAX_PATCHES = 2**14  # Patches of an image; twice the side of any published model.
STACKED = "Transformer/encoderblock/"  # Prefix of big_vision's scanned layers.

Grid = tuple[int, int]  # Patches along height and width.


@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """A weights file under the parameter names of this package; arrays are read on demand.

    Attributes:
      format, prefix: format of the file, and the prefix of its tensor names.
      rows: row of the format's name table, by tensor name.
      ignored: tensors that are not parameters of the model.
      shapes: shape by parameter name.
      grid: grid of the position embeddings; None for a model without.
      pads_cls: the file has no position embedding for the class token; zeros are inserted.
    """

    archive: Archive
    format: Format
    prefix: str
    rows: dict[str, Row]
    ignored: tuple[str, ...]
    metadata: WeightsMetadata
    shapes: dict[str, tuple[int, ...]]
    grid: Grid | None
    pads_cls: bool

    @property
    def path(self) -> pathlib.Path:
        return self.archive.path

    def read(self, names: Collection[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (name, float32 array) of every parameter, or of those in `names`.

        Raises:
          CheckpointError: an array is damaged.
        """
        stack_name, stack = "", np.empty(0)  # The stack read last, of big_vision's layers.
        for name, row in self.rows.items():
            if names is not None and not set(row.params) & set(names):
                continue
            stored_name, layer = _stored_name_and_layer(name, self.archive)
            if layer is None:
                tensor = self.archive.read(stored_name)
            else:
                if stack_name != stored_name:
                    stack_name, stack = stored_name, self.archive.read(stored_name)
                tensor = stack[layer]
            params = tensor_to_params(row, tensor, self.metadata.num_heads or 1)
            for param, array in zip(row.params, params):
                if names is None or param in names:
                    if param == POSITIONS and self.pads_cls:
                        array = np.pad(array, ((0, 0), (1, 0), (0, 0)))
                    yield param, np.ascontiguousarray(array)


def open_weights_file(
    path: str | pathlib.Path, defaults: WeightsMetadata | None = None
) -> WeightsFile:
    """Returns the weights of a file or folder without reading array contents.

    Args:
      path: a `.npz`, a `.safetensors`, or a folder with model.safetensors and config.json.
      defaults: metadata of the model that the weights are for; supplies the number of heads,
        the grid and the kind of position embeddings where the file does not determine them.

    Raises:
      CheckpointError: the format is unknown, or tensors do not belong to a supported model; all
        of them are listed in one line.
    """
    path = pathlib.Path(path)
    archive = open_archive(path / "model.safetensors" if path.is_dir() else path)
    arrays = _unstack_layers(archive)
    detected = formats.detect_format(arrays)
    if detected is None:
        raise CheckpointError(
            f"{archive.path}: unknown format: not a Vision Transformer or BiT ResNet of "
            f"{', '.join(formats.FORMATS)}; its first tensors are "
            f"{', '.join(list(arrays)[:3]) or 'none'}."
        )
    format, prefix = detected
    rows, ignored = _match_rows(archive.path, format, prefix, arrays)
    metadata = _read_metadata(archive, path).with_defaults(
        WeightsMetadata(gelu=format.gelu, norm_eps=format.norm_eps).with_defaults(format.evaluation)
    )
    return _make_weights_file(
        archive, format, prefix, rows, ignored, metadata, defaults or WeightsMetadata(), arrays
    )


def _make_weights_file(
    archive: Archive,
    format: Format,
    prefix: str,
    rows: dict[str, Row],
    ignored: list[str],
    metadata: WeightsMetadata,
    defaults: WeightsMetadata,
    arrays: Mapping[str, ArrayInfo],
) -> WeightsFile:
    """Derives shapes, number of heads and grid; rejects tensors that have none."""
    path = archive.path
    _raise_if_any(
        path,
        [
            f"{name} is {arrays[name].dtype} {arrays[name].shape}, expected non-empty floats of "
            "16 or 32 bits"
            for name in rows
            if 0 in arrays[name].shape or arrays[name].dtype not in READABLE
        ],
    )
    stored_shapes = {
        param: arrays[name].shape for name, row in rows.items() for param in row.params
    }
    if CLS in stored_shapes or any("/encoderblock_" in name for name in stored_shapes):
        num_heads = _num_heads(path, stored_shapes, metadata, defaults)
        metadata = dataclasses.replace(metadata, num_heads=num_heads)
    shapes, mismatches = {}, []
    for name, row in rows.items():
        zeros = np.broadcast_to(np.float32(0), arrays[name].shape)  # Takes no memory.
        try:
            params = tensor_to_params(row, zeros, metadata.num_heads or 1)
            for param, array in zip(row.params, params, strict=True):
                shapes[param] = array.shape
        except (ValueError, IndexError) as error:
            mismatches.append(f"{name} is {arrays[name].shape}: {error}")
    _raise_if_any(path, mismatches)
    if metadata.pool == "gap" and CLS in shapes:
        raise CheckpointError(f"{path}: pool='gap' with a class token is not supported.")
    grid, pads_cls = None, False
    if len(shapes.get("embedding/kernel", ())) == 4:
        metadata, grid, pads_cls = _find_grid(path, format, shapes, metadata, defaults)
    if pads_cls:
        _, num_positions, width = shapes[POSITIONS]
        shapes[POSITIONS] = (1, num_positions + 1, width)
    return WeightsFile(
        archive, format, prefix, rows, tuple(ignored), metadata, shapes, grid, pads_cls
    )


def _unstack_layers(archive: Archive) -> dict[str, ArrayInfo]:
    """The arrays, with each of big_vision's scanned layers as an array of its own."""
    arrays = {}
    for name, info in archive.arrays.items():
        layers = []
        if STACKED in name and info.shape and info.shape[0] <= MAX_LAYERS:
            blocks = [f"Transformer/encoderblock_{i}/" for i in range(info.shape[0])]
            layers = [name.replace(STACKED, block) for block in blocks]
        if not layers or set(layers) & set(archive.arrays):
            arrays[name] = info
        for layer in layers:
            arrays.setdefault(layer, ArrayInfo(info.shape[1:], info.dtype))
    return arrays


def _stored_name_and_layer(name: str, archive: Archive) -> tuple[str, int | None]:
    """The name in the file, and the index into a stack of layers or None."""
    if name in archive.arrays:
        return name, None
    layer = int(re.search(r"Transformer/encoderblock_(\d+)/", name)[1])
    return re.sub(r"Transformer/encoderblock_\d+/", STACKED, name), layer


def _match_rows(
    path: pathlib.Path, format: Format, prefix: str, names: Iterable[str]
) -> tuple[dict[str, Row], list[str]]:
    """Row by tensor name, and the ignored tensors; rejects unknown and duplicate tensors."""
    rows, ignored, errors, tensor_of = {}, [], [], {}
    for name in names:
        bare_name = name.removeprefix(prefix)
        row = formats.row_of_tensor(format, bare_name)
        # Only a head may lack the prefix of the other tensors (Hugging Face's classifier).
        if row is None or (prefix.endswith("/") and not name.startswith(prefix)):
            row = None
            if re.fullmatch(format.ignored, bare_name):
                ignored.append(name)
            else:
                errors.append(f"{name} is not a tensor of the format {format.name}")
        for param in row.params if row else ():
            if param in tensor_of:
                errors.append(f"{name} and {tensor_of[param]} both map to {param}")
            tensor_of[param] = name
        if row:
            rows[name] = row
    _raise_if_any(path, errors)
    return rows, ignored


def _raise_if_any(path: pathlib.Path, errors: list[str]) -> None:
    if errors:
        more = f"; and {len(errors) - MAX_LISTED} more" if len(errors) > MAX_LISTED else ""
        raise CheckpointError(f"{path}: {'; '.join(errors[:MAX_LISTED])}{more}.")


def _num_heads(
    path: pathlib.Path,
    stored_shapes: Mapping[str, tuple],
    metadata: WeightsMetadata,
    defaults: WeightsMetadata,
) -> int | None:
    """Number of heads from the shape of a kernel, the metadata, or the table of sizes."""
    block = "Transformer/encoderblock_0"
    query = stored_shapes.get(f"{block}/MultiHeadDotProductAttention_0/query/kernel", ())
    if len(query) == 3:
        return query[1]
    if metadata.num_heads or defaults.num_heads:
        return metadata.num_heads or defaults.num_heads
    width = stored_shapes.get("Transformer/encoder_norm/scale", ())
    for size in SIZES.values():
        if (size.hidden_size,) == width:
            return size.num_heads
    shown = "x".join(map(str, width)) or "unknown"
    raise CheckpointError(
        f"{path}: cannot infer num_heads for width {shown}; load the weights into a model with "
        "`vit_jax.load_params(path, model)`."
    )


def _find_grid(
    path: pathlib.Path,
    format: Format,
    shapes: Mapping[str, tuple],
    metadata: WeightsMetadata,
    defaults: WeightsMetadata,
) -> tuple[WeightsMetadata, Grid | None, bool]:
    """The metadata with image_size, the grid of positions, and whether the class token has none.

    The grid is None for position embeddings without one, such as relative ones.
    """
    patch = shapes["embedding/kernel"][0] * stem_stride(shapes)
    grid, pads_cls = None, False
    if POSITIONS in shapes:
        grid, pads_cls = _find_sequence_grid(path, format, shapes, metadata, defaults, patch)
    elif {X_POSITIONS, Y_POSITIONS} <= set(shapes):
        for name in (X_POSITIONS, Y_POSITIONS):
            if len(shapes[name]) != 3:
                raise CheckpointError(f"{path}: {name} is {shapes[name]}; expected 1 T D.")
        grid = (shapes[Y_POSITIONS][1], shapes[X_POSITIONS][1])
    if grid:
        metadata = dataclasses.replace(metadata, image_size=(grid[0] * patch, grid[1] * patch))
    height, width = metadata.image_size or (0, 0)
    num_patches = (height // patch) * (width // patch)
    if max(height, width) > metadata_lib.MAX_SIDE or num_patches > MAX_PATCHES:
        raise CheckpointError(
            f"{path}: its images are {height}x{width} pixels with {num_patches} patches; at most "
            f"{metadata_lib.MAX_SIDE} pixels a side and {MAX_PATCHES} patches are supported."
        )
    return metadata, grid, pads_cls


def _find_sequence_grid(
    path: pathlib.Path,
    format: Format,
    shapes: Mapping[str, tuple],
    metadata: WeightsMetadata,
    defaults: WeightsMetadata,
    patch: int,
) -> tuple[Grid, bool]:
    """The grid of embeddings 1 T D, and whether the class token has no position embedding.

    Taken from the image size in the metadata, else square as in the official code, else from
    the image size of the model.
    """
    has_cls, shape = CLS in shapes, shapes[POSITIONS]
    if len(shape) != 3 or shape[0] != 1:
        raise CheckpointError(f"{path}: {POSITIONS} is {shape}; expected 1 T D.")
    if not has_cls or format.name == formats.BIG_VISION:
        num_patches = [shape[1]]
    elif format.name in (formats.TIMM, formats.TIMM_STEM):
        # timm's models with registers have positions for patches alone; other models may.
        num_patches = [shape[1]] if "registers" in shapes else [shape[1] - 1, shape[1]]
    else:
        num_patches = [shape[1] - 1]
    from_metadata, from_defaults = (
        [(size[0] // patch, size[1] // patch)] if size else []
        for size in (metadata.image_size, defaults.image_size)
    )
    squares = [(math.isqrt(count),) * 2 for count in num_patches]
    for grids in (from_metadata, squares, from_defaults):
        for count in num_patches:
            for grid in grids:
                if count and grid[0] * grid[1] == count:
                    return grid, has_cls and count == shape[1]
    raise CheckpointError(
        f"{path}: cannot infer the grid of {num_patches[0]} position embeddings, which is not "
        "square; load the weights into a model with `vit_jax.load_params(path, model)`."
    )


def _read_metadata(archive: Archive, path: pathlib.Path) -> WeightsMetadata:
    """Metadata inside the file, or of the config.json beside it."""
    if archive.metadata:
        return metadata_lib.from_json(archive.metadata, str(archive.path))
    folder = archive.path.parent
    if archive.path.suffix != ".safetensors" or not (folder / "config.json").is_file():
        return WeightsMetadata()
    config, where = _read_json_object(folder / "config.json"), str(archive.path.parent)
    try:
        if "model_type" in config:
            preprocessor_path = folder / "preprocessor_config.json"
            has_preprocessor = preprocessor_path.is_file()
            preprocessor = _read_json_object(preprocessor_path) if has_preprocessor else {}
            return metadata_lib.from_huggingface(config, preprocessor, where)
        if "architecture" in config:
            return metadata_lib.from_timm(config, where)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{where}: config.json has an invalid value ({error}).") from error
    if path.is_dir():
        raise CheckpointError(
            f"{where}: config.json has neither model_type (Hugging Face) nor architecture (timm)."
        )
    return WeightsMetadata()


def _read_json_object(path: pathlib.Path) -> dict:
    try:
        with open(path, "rb") as file:
            values = json.loads(file.read(MAX_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}).") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(values).__name__}.")
    return values
