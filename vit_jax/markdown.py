"""Markdown tables."""

from collections.abc import Sequence


def markdown_table(rows: Sequence[dict]) -> str:
    """Returns rows with the same keys as a Markdown table with aligned columns.

    Floats have two decimals; None is a dash.
    """
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [" | ".join(cell.ljust(w) for cell, w in zip(line, widths)) for line in cells]
    rule = "-|-".join("-" * w for w in widths)
    head, *body = (f"| {line} |" for line in lines)
    return "\n".join([head, f"|-{rule}-|", *body])


def _cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
