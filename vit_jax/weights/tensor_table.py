"""Table of a conversion: where every tensor goes, and how it changes."""

from collections.abc import Sequence

from vit_jax.weights import adapt, load, writer
from vit_jax.weights.tensor_layouts import CLS, POSITIONS


def tensor_table(
    loaded: load.LoadedModel,
    plan: adapt.AdaptPlan,
    export: writer.ExportPlan | None,
    shapes: dict[str, tuple],
) -> list[str]:
    """Returns a table of source name, destination name, shape and change of every tensor.

    Args:
      loaded: the source.
      plan: the plan that was applied to its parameters.
      export: the plan of the new file; None for Orbax.
      shapes: shapes of the new parameters.
    """
    file = loaded.weights_file
    sources = {name: name for name in loaded.weights.shapes}
    if file:
        sources = {param: tensor for tensor, row in file.rows.items() for param in row.params}
    targets = {name: name for name in shapes}
    if export:
        targets = {param: tensor for tensor, row in export.rows.items() for param in row.params}
    arrays = file.archive.arrays if file else {}
    doubles = {name for name, info in arrays.items() if info.dtype == "float64"}
    lines = [("source", "destination", "shape", "change")]
    for name, target in targets.items():
        is_position = "/posembed_" in name
        changes = [
            change
            for change, is_made in (
                ("renamed", sources.get(name, target) != target),
                ("resized", plan.old_grid != plan.new_grid and is_position),
                ("class token's position dropped", plan.drops_cls and is_position),
                ("class token's position zeros", file and file.pads_cls and name == POSITIONS),
                ("position folded in", export and export.folds_cls and name == CLS),
                ("LayerScale folded in", name in plan.folded),
                ("zeros", name in plan.new_shapes),
                ("rounded from float64", sources.get(name) in doubles),
            )
            if is_made
        ]
        change = ", ".join(changes) or "same"
        lines.append((sources.get(name, "-"), target, format_shape(shapes[name]), change))
    for name in plan.dropped:
        change = "folded" if name in plan.folded.values() else "dropped"
        lines.append((sources[name], "-", format_shape(loaded.weights.shapes[name]), change))
    for name in file.ignored if file else ():
        lines.append((name, "-", "-", "ignored: not a parameter of the model"))
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, (*widths, 0))).rstrip()
        for line in lines
    ]


def format_shape(shape: Sequence[int]) -> str:
    """Returns a shape as text, such as 16x16x3x768."""
    return "x".join(map(str, shape)) or "scalar"
