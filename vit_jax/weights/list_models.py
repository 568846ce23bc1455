"""Lists model names and published weights."""

import fnmatch
from collections.abc import Iterator

from vit_jax.atomic_io import to_json
from vit_jax.errors import ConfigError
from vit_jax.models.encoders import ENCODERS
from vit_jax.models.flops import forward_macs
from vit_jax.models.registry import PARAMETERS, create_model
from vit_jax.weights.published import BASE_URL, list_published, suggest_published


def models_table(pattern: str = "*", as_json: bool = False) -> str:
    """Returns tables of models with parameters and GMACs, of encoders by family, and of weights.

    Args:
      pattern: shell pattern of names of models and weights; without `*`, `?` and `[`, a part of
        the name.
      as_json: returns one JSON object with the keys `models`, `encoders` and `weights`.

    Raises:
      ConfigError: nothing matches.
    """
    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    models = [
        {
            "model": name,
            "parameters": PARAMETERS[name],
            "GMACs": round(forward_macs(create_model(name)) / 1e9, 3),
        }
        for name in fnmatch.filter(PARAMETERS, glob)
    ]
    weights = [
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
        for entry in list_published()
        if any(fnmatch.fnmatchcase(name, glob) for name in (entry.name, entry.model))
    ]
    encoders = list(_encoders(glob))
    if not models and not encoders and not weights:
        raise ConfigError(f"no model or weights match {pattern!r}.{suggest_published(pattern)}")
    if as_json:
        return to_json({"models": models, "encoders": encoders, "weights": weights}, indent=2)
    tables = []
    if models:
        lines = _align_columns(models, ("model", "parameters", "GMACs"))
        lines.append("with 1,000 classes at 224 pixels; other vit_<size><patch> are supported too")
        tables.append(lines)
    if encoders:
        tables.append(_encoders_table(encoders))
    if weights:
        lines = _align_columns(weights, ("weights", "model", "classes", "pixels", "MB", "licence"))
        lines.append(
            f"files: {BASE_URL}/<bucket>/<weights>.npz; --json has URLs and notes. Preprocessing: "
            "whole image resized, pixels in [-1, 1]. Other AugReg names are supported too."
        )
        tables.append(lines)
    return "\n\n".join("\n".join(lines) for lines in tables)


def _encoders(glob: str) -> Iterator[dict]:
    """Yields the published sizes of the families in `ENCODERS` that match a pattern."""
    for family, encoder in ENCODERS.items():
        for size, row in encoder.published.items():
            name, weights = f"{family}_{size}", encoder.weights_of(size)
            if any(fnmatch.fnmatchcase(text, glob) for text in (name, weights)):
                yield {
                    "encoder": name,
                    "family": encoder.title,
                    "parameters": row.parameters,
                    "pixels": row.image_size,
                    "licence": encoder.licence,
                    "weights": weights,
                    "paper": f"arXiv:{encoder.paper}",
                }


def _encoders_table(encoders: list[dict]) -> list[str]:
    """The lines of a table in which each family is named once."""
    rows, families = [], set()
    for row in encoders:
        is_first = row["family"] not in families
        families.add(row["family"])
        rows.append(row if is_first else row | {"family": "", "licence": ""})
    columns = ("family", "encoder", "parameters", "pixels", "licence", "weights")
    note = "parameters without a head; every <family>_<size><patch> is a name; --json has papers"
    return [*_align_columns(rows, columns), note]


def _align_columns(rows: list[dict], columns: tuple[str, ...]) -> list[str]:
    cells = [columns, *(tuple(_format_cell(row[column]) for column in columns) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    is_number = [isinstance(rows[0][column], int | float) for column in columns]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number)
        ).rstrip()
        for line in cells
    ]


def _format_cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else str(value)
