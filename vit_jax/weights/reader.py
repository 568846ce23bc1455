"""Weights of any ecosystem under our names, judged before they are read."""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator

import numpy as np

from vit_jax.errors import CheckpointError
from vit_jax.models.sizes import SIZES
from vit_jax.weights import formats, metadata
from vit_jax.weights.archive import READABLE, Archive, Entry, open_archive
from vit_jax.weights.formats import Dialect
from vit_jax.weights.metadata import Facts
from vit_jax.weights.tensor_layouts import CLS, POSITIONS, X_POSITIONS, Y_POSITIONS, Row, to_ours
from vit_jax.weights.units import stride_of

MAX_LISTED = 20
MAX_JSON = 2**22  # Bytes of a config.json.
MAX_LAYERS = 256
MAX_PATCHES = 2**14  # Of an image; twice as many on each side as any published model has.
STACKED = "Transformer/encoderblock/"  # Of big_vision's scanned layers.


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A file of weights under our names; `read` gives its arrays one after the other."""

    archive: Archive
    dialect: Dialect
    root: str
    rows: dict[str, Row]  # By name in the file.
    left_out: tuple[str, ...]  # Names in the file that carry nothing for a model.
    facts: Facts
    shapes: dict[str, tuple[int, ...]]  # By our name.
    grid: tuple[int, int] | None
    pads_cls: bool  # Whether the class token has no position there, and gets zeros here.

    @property
    def path(self) -> pathlib.Path:
        return self.archive.path

    def read(self, names: Collection[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """Name and float32 array of every parameter, or of those named, checked on the way."""
        stack: tuple[str, np.ndarray] = ("", np.empty(0))
        for name, row in self.rows.items():
            if names is not None and not set(row.ours) & set(names):
                continue
            stored, layer = _place_of(name, self.archive)
            if layer is None:
                array = self.archive.read(stored)
            else:
                if stack[0] != stored:
                    stack = (stored, self.archive.read(stored))
                array = stack[1][layer]
            for ours, part in zip(row.ours, to_ours(row, array, self.facts.num_heads or 1)):
                if names is None or ours in names:
                    if ours == POSITIONS and self.pads_cls:
                        part = np.pad(part, ((0, 0), (1, 0), (0, 0)))
                    yield ours, np.ascontiguousarray(part)


def open_foreign(path: str | pathlib.Path, like: Facts | None = None) -> Foreign:
    """The weights of a `.npz`, a `.safetensors`, or a folder with config.json beside one.

    Args:
      like: what the model that they are meant for says of itself; it stands in where files
        are silent about heads, the grid of positions, or position embeddings without weights.

    Raises CheckpointError, all in one line, for tensors that no model of ours has a place for.
    """
    path = pathlib.Path(path)
    archive = open_archive(path / "model.safetensors" if path.is_dir() else path)
    entries = _unstacked(archive)
    known = formats.recognise(entries)
    if known is None:
        raise CheckpointError(
            f"{archive.path}: no Vision Transformer or BiT ResNet in a layout that is read here; "
            f"it begins with {', '.join(list(entries)[:3]) or 'nothing'}."
        )
    dialect, root = known
    rows, left_out = _rows(archive.path, dialect, root, entries)
    said = _facts(archive, path).over(Facts(gelu=dialect.gelu, norm_eps=dialect.norm_eps))
    return _judged(archive, dialect, root, rows, left_out, said, like or Facts(), entries)


def _judged(archive, dialect, root, rows, left_out, said, like, entries) -> Foreign:
    where = archive.path
    _refuse(
        where,
        [
            f"{name} is {entries[name].dtype} {entries[name].shape}, which no weights are"
            for name in rows
            if 0 in entries[name].shape or entries[name].dtype not in READABLE
        ],
    )
    shapes = {ours: entries[name].shape for name, row in rows.items() for ours in row.ours}
    if CLS in shapes or any("/encoderblock_" in name for name in shapes):
        said = dataclasses.replace(said, num_heads=_num_heads(where, rows, entries, said, like))
    shapes, strange = {}, []
    for name, row in rows.items():
        zeros = np.broadcast_to(np.float32(0), entries[name].shape)
        try:
            for ours, part in zip(row.ours, to_ours(row, zeros, said.num_heads or 1), strict=True):
                shapes[ours] = part.shape
        except (ValueError, IndexError) as error:
            strange.append(f"{name} is {entries[name].shape}: {error}")
    _refuse(where, strange)
    if said.pool == "gap" and CLS in shapes:
        raise CheckpointError(f"{where}: a mean of patches beside a class token is not read here.")
    grid, pads_cls = None, False
    if len(shapes.get("embedding/kernel", ())) == 4:
        said, grid, pads_cls = _grid(where, dialect, shapes, said, like)
    if pads_cls:
        _, num, width = shapes[POSITIONS]
        shapes[POSITIONS] = (1, num + 1, width)
    return Foreign(archive, dialect, root, rows, tuple(left_out), said, shapes, grid, pads_cls)


def _unstacked(archive: Archive) -> dict[str, Entry]:
    """The entries, with big_vision's scanned layers as one entry for each layer."""
    entries = {}
    for name, entry in archive.entries.items():
        layers = []
        if STACKED in name and entry.shape and entry.shape[0] <= MAX_LAYERS:
            blocks = [f"Transformer/encoderblock_{i}/" for i in range(entry.shape[0])]
            layers = [name.replace(STACKED, block) for block in blocks]
        if not layers or set(layers) & set(archive.entries):
            entries[name] = entry
        for layer in layers:
            entries.setdefault(layer, Entry(entry.shape[1:], entry.dtype))
    return entries


def _place_of(name: str, archive: Archive) -> tuple[str, int | None]:
    """Where an unstacked entry lies: the name in the file, and the layer of the stack."""
    if name in archive.entries:
        return name, None
    layer = int(re.search(r"Transformer/encoderblock_(\d+)/", name)[1])
    return re.sub(r"Transformer/encoderblock_\d+/", STACKED, name), layer


def _rows(path, dialect: Dialect, root: str, entries) -> tuple[dict[str, Row], list[str]]:
    rows, left_out, strange, taken = {}, [], [], {}
    for name in entries:
        bare = name.removeprefix(root)
        row = formats.resolve(dialect, bare)
        # A name without the root of the others is another thing, but for heads beside a model.
        if row is None or (root.endswith("/") and not name.startswith(root)):
            row = None
            (left_out if re.fullmatch(dialect.left_out, bare) else strange).append(name)
        for ours in row.ours if row else ():
            if ours in taken:
                strange.append(f"{name} (which {taken[ours]} is already)")
            taken[ours] = name
        if row:
            rows[name] = row
    _refuse(path, [f"{name} has no place in a model of {dialect.name}" for name in strange])
    return rows, left_out


def _refuse(path, lines: list[str]) -> None:
    if lines:
        more = f"; and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
        raise CheckpointError(f"{path}: {'; '.join(lines[:MAX_LISTED])}{more}.")


def _num_heads(path, rows, entries, said: Facts, like: Facts) -> int | None:
    """Heads by a kernel's own shape, by what files or the model say, or by the size's row."""
    shapes = {ours: entries[name].shape for name, row in rows.items() for ours in row.ours}
    block = "Transformer/encoderblock_0"
    query = shapes.get(f"{block}/MultiHeadDotProductAttention_0/query/kernel", ())
    if len(query) == 3:
        return query[1]
    if said.num_heads or like.num_heads:
        return said.num_heads or like.num_heads
    width = shapes.get("Transformer/encoder_norm/scale", ())
    for size in SIZES.values():
        if (size.hidden_size,) == width:
            return size.num_heads
    raise CheckpointError(
        f"{path}: nothing says how many heads these layers of width {_by(width)} have; "
        "load it into a model that says so."
    )


def _by(sides: Iterable[int]) -> str:
    return "x".join(map(str, sides)) or "unknown"


def _grid(path, dialect: Dialect, shapes, said: Facts, like: Facts):
    """The grid of the position embeddings, and whether the class token has none of them.

    Facts get the size of the images that have it. None for positions without a grid.
    """
    patch = shapes["embedding/kernel"][0] * stride_of(shapes)
    grid, pads_cls = None, False
    if POSITIONS in shapes:
        grid, pads_cls = _grid_of_sequence(path, dialect, shapes, said, like, patch)
    elif {X_POSITIONS, Y_POSITIONS} <= set(shapes):
        if any(len(shapes[name]) != 3 for name in (X_POSITIONS, Y_POSITIONS)):
            raise CheckpointError(f"{path}: position embeddings must be 1 T D.")
        grid = (shapes[Y_POSITIONS][1], shapes[X_POSITIONS][1])
    if grid:
        said = dataclasses.replace(said, image_size=(grid[0] * patch, grid[1] * patch))
    height, width = said.image_size or (0, 0)
    if max(height, width) > metadata.MAX_SIDE or (height // patch) * (width // patch) > MAX_PATCHES:
        raise CheckpointError(
            f"{path}: its images have more than {metadata.MAX_SIDE} pixels on a side, or more than "
            f"{MAX_PATCHES} patches."
        )
    return said, grid, pads_cls


def _grid_of_sequence(path, dialect: Dialect, shapes, said: Facts, like: Facts, patch: int):
    """Metadata and names tell it; where neither does, it is square, as the official code's."""
    has_cls, shape = CLS in shapes, shapes[POSITIONS]
    if len(shape) != 3 or shape[0] != 1:
        raise CheckpointError(f"{path}: position embeddings are {shape}; they must be 1 T D.")
    if not has_cls or dialect.name == formats.BIG_VISION:
        counts = [shape[1]]  # One for each patch, whatever else there is.
    elif dialect.name in (formats.TIMM, formats.TIMM_STEM):
        # timm's models with registers give positions to patches alone; others may.
        counts = [shape[1]] if "registers" in shapes else [shape[1] - 1, shape[1]]
    else:
        counts = [shape[1] - 1]
    told, wanted = (
        [(size[0] // patch, size[1] // patch)] if size else []
        for size in (said.image_size, like.image_size)
    )
    sides = [(math.isqrt(count),) * 2 for count in counts]
    for grids in (told, sides, wanted):
        for count in counts:
            for grid in grids:
                if count and grid[0] * grid[1] == count:
                    return grid, has_cls and count == shape[1]
    raise CheckpointError(
        f"{path}: {counts[0]} position embeddings are no square grid, and nothing says which."
    )


def _facts(archive: Archive, path: pathlib.Path) -> Facts:
    """What the file's own metadata says, or a config.json beside it."""
    if archive.metadata:
        return metadata.from_metadata(archive.metadata, str(archive.path))
    folder = archive.path.parent
    if archive.path.suffix != ".safetensors" or not (folder / "config.json").is_file():
        return Facts()
    config, where = _read_json(folder / "config.json"), str(archive.path.parent)
    try:
        if "model_type" in config:
            beside = folder / "preprocessor_config.json"
            processor = _read_json(beside) if beside.is_file() else {}
            return metadata.from_huggingface(config, processor, where)
        if "architecture" in config:
            return metadata.from_timm(config, where)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{where}: its config.json is damaged ({error}).") from error
    if path.is_dir():
        raise CheckpointError(f"{where}: neither Hugging Face's nor timm's config.json.")
    return Facts()


def _read_json(path: pathlib.Path) -> dict:
    try:
        with open(path, "rb") as file:
            values = json.loads(file.read(MAX_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable JSON ({error}).") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds no JSON object.")
    return values
