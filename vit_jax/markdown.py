"""Rows as a Markdown table."""

from collections.abc import Sequence


def markdown(rows: Sequence[dict]) -> str:
    """Rows of equal keys as a Markdown table with aligned columns."""
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [" | ".join(cell.ljust(w) for cell, w in zip(line, widths)) for line in cells]
    lines.insert(1, "-|-".join("-" * w for w in widths))
    return "\n".join(f"| {line} |" if i != 1 else f"|-{line}-|" for i, line in enumerate(lines))


def _text(value) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
