"""Reads weights files of all supported formats under the parameter names of this package."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from vit_jax.data.labels import check_new_names
from vit_jax.errors import CheckpointError, listed
from vit_jax.weights import config_files, families, formats, names_timm, tensor_properties
from vit_jax.weights import metadata as metadata_lib
from vit_jax.weights.archive import READABLE, Archive, ArrayInfo
from vit_jax.weights.formats import Format
from vit_jax.weights.metadata import UNKNOWN, WeightsMetadata
from vit_jax.weights.tensor_layouts import (
    CLS,
    POSITIONS,
    X_POSITIONS,
    Y_POSITIONS,
    Row,
    has_wrong_axes,
    stem_stride,
    tensor_to_params,
)
from vit_jax.weights.weights_folder import ShardedArchive, open_weights

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
      other_tower: tensors of another model in the file, such as a text tower.
      shapes: shape by parameter name.
      grid: grid of the position embeddings; None for a model without.
      pads_cls: the file has no position embedding for the class token; zeros are inserted.
      decoder_heads: heads of the decoder, if it is read.
    """

    archive: Archive | ShardedArchive
    format: Format
    prefix: str
    rows: dict[str, Row]
    ignored: tuple[str, ...]
    other_tower: tuple[str, ...]
    metadata: WeightsMetadata
    shapes: dict[str, tuple[int, ...]]
    grid: Grid | None
    pads_cls: bool
    decoder_heads: int | None = None

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
            params = tensor_to_params(row, tensor, self._num_heads(row))
            for param, array in zip(row.params, params):
                if names is None or param in names:
                    if param == POSITIONS and self.pads_cls:
                        array = np.pad(array, ((0, 0), (1, 0), (0, 0)))
                    yield param, np.ascontiguousarray(array)

    def _num_heads(self, row: Row) -> int:
        return _num_heads(row, self.metadata.num_heads, self.decoder_heads)


def open_weights_file(
    path: str | pathlib.Path,
    model: WeightsMetadata | None = None,
    given: WeightsMetadata = UNKNOWN,
    *,
    decoder_heads: int | None = None,
) -> WeightsFile:
    """Returns the weights of a file or folder without reading array contents.

    Missing options are taken, in this order, from a family of published weights, from
    `model`, and from the official code. `metadata.assumed` of the result has all that was taken.

    Args:
      path: a `.npz`, a `.safetensors`, or a folder with model.safetensors and config.json.
      model: metadata of the model that the weights are for; supplies the number of heads, the
        grid and options that change outputs.
      given: options from the user, which replace those of the file.
      decoder_heads: heads of the decoder of a masked autoencoder; None ignores a decoder.

    Raises:
      CheckpointError: the format is unknown, or tensors do not belong to a supported model; all
        of them are listed in one line. Or nothing gives the number of heads.
    """
    path = pathlib.Path(path)
    archive = open_weights(path)
    arrays = _unstack_layers(archive)
    format, prefix = _detect_format(archive.path, arrays)
    config = config_files.read_config(archive, path)
    decoder = _match_decoder(format, prefix, arrays)
    rest = {name: info for name, info in arrays.items() if name not in decoder or not decoder_heads}
    rows, ignored, other_tower = _match_rows(archive.path, format, prefix, rest, config.unused)
    rows |= decoder if decoder_heads else {}
    _raise_if_any(
        archive.path,
        [
            f"{name} is {arrays[name].dtype} {arrays[name].shape}, expected non-empty floats of "
            "16, 32 or 64 bits"
            for name in rows
            if 0 in arrays[name].shape or arrays[name].dtype not in READABLE
        ]
        + [
            f"{name} is {arrays[name].shape}, which has the wrong number of axes"
            for name, row in rows.items()
            if has_wrong_axes(row, arrays[name].shape)
        ],
    )
    stored_shapes = {
        param: arrays[name].shape for name, row in rows.items() for param in row.params
    }
    if given.classes and config.metadata.classes:
        check_new_names(given.classes, config.metadata.classes, f"{path}:classes")
    metadata = given.with_defaults(config.metadata)
    family = families.find_family(
        format, prefix, stored_shapes, config.kind, gelu=metadata.gelu, ignored=(*ignored, *decoder)
    )
    metadata = families.complete(
        metadata,
        format,
        families.of_encoder(metadata.family) if metadata.family else family,
        stored_shapes,
        model,
        str(path),
    )
    shapes = _shapes_of_params(archive.path, rows, arrays, metadata.num_heads, decoder_heads)
    tensor_properties.check_claims(config.claims, shapes, str(archive.path.parent))
    grid, pads_cls = None, False
    if len(shapes.get("embedding/kernel", ())) == 4:
        metadata, grid, pads_cls = _find_grid(archive.path, format, shapes, metadata, model)
    if pads_cls:
        _, num_positions, width = shapes[POSITIONS]
        shapes[POSITIONS] = (1, num_positions + 1, width)
    return WeightsFile(
        archive=archive,
        format=format,
        prefix=prefix,
        rows=rows,
        ignored=ignored,
        other_tower=other_tower,
        metadata=metadata,
        shapes=shapes,
        grid=grid,
        pads_cls=pads_cls,
        decoder_heads=decoder_heads,
    )


def _detect_format(path: pathlib.Path, names: Collection[str]) -> tuple[Format, str]:
    """The format and the prefix of tensors; rejects unknown formats and files of several models."""
    detected = formats.detect_formats(names)
    if not detected:
        raise CheckpointError(
            f"{path}: unknown format: not a Vision Transformer or BiT ResNet of "
            f"{', '.join(formats.FORMATS)}; its first tensors are "
            f"{', '.join(list(names)[:3]) or 'none'}."
        )
    if len(prefixes := {prefix: None for _, prefix in detected}) > 1:
        names = listed([f"{prefix}*" for prefix in prefixes], separator=" and ")
        raise CheckpointError(
            f"{path}: the tensors are of several models, {names}; keep those of one."
        )
    return detected[0]


def _num_heads(row: Row, encoder: int | None, decoder: int | None) -> int:
    """The number of heads of the layer that a row is of; 1 where it is unknown."""
    return (decoder if row.params[0].startswith("Decoder/") else encoder) or 1


def _shapes_of_params(
    path: pathlib.Path,
    rows: dict[str, Row],
    arrays: Mapping[str, ArrayInfo],
    num_heads: int | None,
    decoder_heads: int | None,
) -> dict[str, tuple[int, ...]]:
    """Shape by parameter name; rejects tensors that their layout does not allow."""
    shapes, mismatches = {}, []
    for name, row in rows.items():
        zeros = np.broadcast_to(np.float32(0), arrays[name].shape)  # Takes no memory.
        try:
            params = tensor_to_params(row, zeros, _num_heads(row, num_heads, decoder_heads))
            for param, array in zip(row.params, params, strict=True):
                shapes[param] = array.shape
        except (ValueError, IndexError) as error:
            mismatches.append(f"{name} is {arrays[name].shape}: {error}")
    _raise_if_any(path, mismatches)
    return shapes


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
    path: pathlib.Path, format: Format, prefix: str, arrays: Mapping[str, ArrayInfo], unused: str
) -> tuple[dict[str, Row], tuple[str, ...], tuple[str, ...]]:
    """Row by tensor name, ignored tensors and those of another tower; rejects unknown tensors."""
    rows, ignored, other_tower, errors, tensor_of = {}, [], [], [], {}
    plain_names = {name: formats.without_wrappers(name) for name in arrays}
    shapes = {plain.removeprefix(prefix): arrays[name].shape for name, plain in plain_names.items()}
    has_gated_fc1 = names_timm.has_gated_fc1(shapes)
    for name, plain_name in plain_names.items():
        if not plain_name.startswith(prefix) and re.fullmatch(format.other_tower, plain_name):
            other_tower.append(name)
            continue
        bare_name = plain_name.removeprefix(prefix)
        if re.fullmatch(unused, bare_name):
            ignored.append(name)
            continue
        row = formats.row_of_tensor(format, bare_name, has_gated_fc1)
        # Only a head may lack the prefix of the other tensors (Hugging Face's classifier).
        if row is None or (prefix.endswith("/") and not plain_name.startswith(prefix)):
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
    return rows, tuple(ignored), tuple(other_tower)


def _match_decoder(format: Format, prefix: str, arrays: Mapping[str, ArrayInfo]) -> dict[str, Row]:
    """Row by tensor name of the decoder of a masked autoencoder; {} for a file without one."""
    rows = {}
    for name in arrays:
        bare_name = formats.without_wrappers(name).removeprefix(prefix)
        if row := formats.decoder_row_of_tensor(format, bare_name):
            rows[name] = row
    return rows


def _raise_if_any(path: pathlib.Path, errors: list[str]) -> None:
    if errors:
        raise CheckpointError(f"{path}: {listed(errors)}.")


def _find_grid(
    path: pathlib.Path,
    format: Format,
    shapes: Mapping[str, tuple],
    metadata: WeightsMetadata,
    model: WeightsMetadata | None,
) -> tuple[WeightsMetadata, Grid | None, bool]:
    """The metadata with image_size, the grid of positions, and whether the class token has none.

    The grid is None for position embeddings without one, such as relative ones.
    """
    patch = shapes["embedding/kernel"][0] * stem_stride(shapes)
    grid, pads_cls, reason = None, False, ""
    if POSITIONS in shapes:
        grid, pads_cls, reason = _find_sequence_grid(path, format, shapes, metadata, model, patch)
    elif {X_POSITIONS, Y_POSITIONS} <= set(shapes):
        for name in (X_POSITIONS, Y_POSITIONS):
            if len(shapes[name]) != 3:
                raise CheckpointError(f"{path}: {name} is {shapes[name]}; expected 1 T D.")
        grid = (shapes[Y_POSITIONS][1], shapes[X_POSITIONS][1])
    if grid:
        image_size = (grid[0] * patch, grid[1] * patch)
        if reason:
            metadata = metadata.assuming(reason, image_size=image_size)
        metadata = dataclasses.replace(metadata, image_size=image_size)
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
    model: WeightsMetadata | None,
    patch: int,
) -> tuple[Grid, bool, str]:
    """The grid of embeddings 1 T D, whether the class token has no position, and an assumption.

    The image size in the metadata determines the grid. Without one it is assumed to be square, as
    in the official code, else that of the model.
    """
    has_cls, shape = CLS in shapes, shapes[POSITIONS]
    tokens = has_cls + ("dist_token" in shapes)
    if len(shape) != 3 or shape[0] != 1:
        raise CheckpointError(f"{path}: {POSITIONS} is {shape}; expected 1 T D.")
    if not has_cls or format.name in (formats.BIG_VISION, formats.TIPS):
        num_patches = [shape[1]]
    elif format.name in (formats.TIMM, formats.TIMM_STEM):
        # timm's models with registers have positions for patches alone; other models may.
        num_patches = [shape[1]] if "registers" in shapes else [shape[1] - tokens, shape[1]]
    else:
        num_patches = [shape[1] - tokens]
    if metadata.image_size:
        candidates = [(_grid_of(metadata.image_size, patch), "")]
    else:
        candidates = [((math.isqrt(count),) * 2, "square grid") for count in num_patches]
        if model and model.image_size:
            candidates.append((_grid_of(model.image_size, patch), "the model"))
    fitting = [
        (grid, has_cls and count == shape[1], reason)
        for grid, reason in candidates
        for count in num_patches
        if count and grid[0] * grid[1] == count
    ]
    if fitting:
        (grid, pads_cls, reason), (other, *_) = fitting[0], fitting[-1]
        if other != grid:
            size = "x".join(str(side * patch) for side in other)
            reason += f", but {other[0]}x{other[1]} fits, too: {path}:image_size={size}"
        return grid, pads_cls, reason
    if metadata.image_size:
        height, width = metadata.image_size
        raise CheckpointError(
            f"{path}: image_size {height}x{width} contradicts {num_patches[0]} position embeddings "
            f"of patches of {patch}x{patch}; give the size, as in {path}:image_size=HEIGHTxWIDTH."
        )
    raise CheckpointError(
        f"{path}: cannot infer the grid of {num_patches[0]} position embeddings, which is not "
        f"square; give the image size, as in {path}:image_size=HEIGHTxWIDTH."
    )


def _grid_of(image_size: tuple[int, int], patch: int) -> Grid:
    return image_size[0] // patch, image_size[1] // patch
