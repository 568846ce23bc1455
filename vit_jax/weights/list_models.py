"""Lists models and published weights."""

import fnmatch
import json

from vit_jax.errors import ConfigError
from vit_jax.models.flops import forward_macs
from vit_jax.models.registry import PARAMETERS, create_model, list_models
from vit_jax.weights.published import BASE_URL, nearest_name, published


def models_table(pattern: str = "*", as_json: bool = False) -> str:
    """Two tables: shapes with parameters and GMACs, and published weights that fit them.

    Args:
      pattern: a shell pattern over the names of models and of weights; without a `*`, a part
        of the name.

    Raises ConfigError where nothing matches.
    """
    wanted = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    shapes = [
        {
            "model": name,
            "parameters": PARAMETERS[name],
            "GMACs": round(forward_macs(create_model(name)) / 1e9, 3),
        }
        for name in list_models(wanted)
    ]
    files = [
        {
            "weights": entry.name,
            "model": entry.model,
            "classes": entry.num_classes,
            "pixels": entry.image_size,
            "pool": entry.pool,
            "MB": None if entry.size is None else round(entry.size / 1e6),
            "licence": entry.licence,
            "url": entry.url,
            "note": entry.note,
        }
        for entry in published()
        if any(fnmatch.fnmatchcase(name, wanted) for name in (entry.name, entry.model))
    ]
    if not shapes and not files:
        raise ConfigError(f"no model and no weights match {pattern!r}.{nearest_name(pattern)}")
    if as_json:
        return json.dumps({"models": shapes, "weights": files}, indent=2)
    parts = []
    if shapes:
        parts += _aligned(shapes, ("model", "parameters", "GMACs"))
        parts.append("with 1,000 classes at 224 px; any other vit_<size><patch> works as well")
    if files:
        parts += [""] if parts else []
        parts += _aligned(files, ("weights", "model", "classes", "pixels", "MB", "licence"))
        parts.append(
            f"files: {BASE_URL}/<bucket>/<weights>.npz, URLs and notes by --json; pixels in "
            "[-1, 1], the whole image resized; every name of AugReg's grammar works, too"
        )
    return "\n".join(parts)


def _aligned(rows: list[dict], columns: tuple[str, ...]) -> list[str]:
    cells = [columns, *(tuple(_text(row[column]) for column in columns) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    is_number = [isinstance(rows[0][column], int | float) for column in columns]
    return [
        "  ".join(
            cell.rjust(w) if right else cell.ljust(w)
            for cell, w, right in zip(line, widths, is_number)
        ).rstrip()
        for line in cells
    ]


def _text(value) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)
