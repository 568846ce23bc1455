"""Table of a conversion: where every tensor goes, and how it changes."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vit_jax.weights import adapt, load, writer
from vit_jax.weights.tensor_layouts import CLS, POSITIONS, Row, params_to_tensor


def tensor_table(
    loaded: load.LoadedModel,
    plan: adapt.AdaptPlan,
    export: writer.ExportPlan | None,
    shapes: dict[str, tuple],
) -> list[str]:
    """Returns a table of source name, destination name, shapes and change of every tensor.

    The shapes are those of the stored tensors, `source->destination` where they differ.

    Args:
      loaded: the source.
      plan: the plan that was applied to its parameters.
      export: the plan of the new file; None for Orbax.
      shapes: shapes of the new parameters.
    """
    file = loaded.weights_file
    sources = _rows_by_param(file.rows if file else {}, loaded.weights.shapes)
    targets = _rows_by_param(export.rows if export else {}, shapes)
    arrays = file.archive.arrays if file else {}
    doubles = {name for name, info in arrays.items() if info.dtype == "float64"}
    lines = [("source", "destination", "shape", "change")]
    for name, new in targets.items():
        old = sources.get(name)
        before = old and _stored_shape(old, loaded.weights.shapes, arrays)
        after = _stored_shape(new, shapes)
        layout_change = _layout_change(old, new, before, after)
        is_position = "/posembed_" in name
        changes = [
            change
            for change, is_made in (
                ("renamed", old and old.tensor != new.tensor),
                (layout_change, layout_change),
                ("resized", plan.old_grid != plan.new_grid and is_position),
                ("class token's position dropped", plan.dropped_tokens and is_position),
                ("class token's position zeros", file and file.pads_cls and name == POSITIONS),
                ("position folded in", export and export.folds_cls and name == CLS),
                ("LayerScale folded in", name in plan.folded),
                ("head_norm folded in", plan.folds_head_norm and name in adapt.HEAD),
                ("zeros", name in plan.new_shapes),
                ("fixed positions", old is None and is_position),
                ("rounded from float64", old and old.tensor in doubles),
            )
            if is_made
        ]
        change = ", ".join(changes) or "same"
        text = format_shape(after)
        if before not in (None, after):
            text = f"{format_shape(before)}->{text}"
        lines.append((old.tensor if old else "-", new.tensor, text, change))
    for name in plan.dropped:
        is_folded = name in plan.folded.values() or name in adapt.HEAD_NORM * plan.folds_head_norm
        change = "folded" if is_folded else "dropped"
        shape = _stored_shape(sources[name], loaded.weights.shapes, arrays)
        lines.append((sources[name].tensor, "-", format_shape(shape), change))
    for name in file.ignored if file else ():
        lines.append((name, "-", "-", "ignored: not a parameter of the model"))
    if file and file.other_tower:
        lines.append((f"{len(file.other_tower)} tensors", "-", "-", "ignored: another tower"))
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, (*widths, 0))).rstrip()
        for line in lines
    ]


def _rows_by_param(rows: Mapping[str, Row], shapes: Iterable[str]) -> dict[str, Row]:
    """Returns the row of each parameter; without rows, parameters are stored as they are."""
    rows = rows or {name: Row(name, (name,)) for name in shapes}
    return {
        param: dataclasses.replace(row, tensor=tensor)
        for tensor, row in rows.items()
        for param in row.params
    }


def _layout_change(old: Row | None, new: Row, before: tuple | None, after: tuple) -> str:
    """Returns how the layout of a tensor changes, or ''."""
    if old is None or old.layout == new.layout:
        return ""
    if len(old.params) != len(new.params):
        return "joined" if len(old.params) < len(new.params) else "split"
    is_same_order = 1 in (len(before), len(after)) or {old.layout, new.layout} == {
        "same",
        "conv_of_linear",
    }
    return "reshaped" if is_same_order else "transposed"


def _stored_shape(row: Row, shapes: Mapping[str, tuple], arrays: Mapping = {}) -> tuple:
    """Returns the shape of a tensor in its file: as read from there, or else from its layout."""
    if row.tensor in arrays:
        return arrays[row.tensor].shape
    params = (np.broadcast_to(np.int8(0), shapes[param]) for param in row.params)
    return params_to_tensor(row, params).shape


def format_shape(shape: Sequence[int]) -> str:
    """Returns a shape as text, such as 16x16x3x768."""
    return "x".join(map(str, shape)) or "scalar"
