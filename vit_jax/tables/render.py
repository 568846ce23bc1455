"""The paper's tables as Markdown or JSON, beside what this code computes."""

import json
from collections.abc import Sequence

from vit_jax.errors import ConfigError, nearest
from vit_jax.flops import training_flops
from vit_jax.models import create_model
from vit_jax.tables.paper import JFT_CLASSES, JFT_EXAMPLES, TABLE_6

EXA = 1e18


def table(name: str, as_json: bool = False) -> str:
    """A table by name; raises ConfigError for a name that there is not."""
    if name not in TABLES:
        raise ConfigError(
            f"no table {name!r}; choose from {', '.join(TABLES)}.{nearest(name, TABLES)}"
        )
    rows = TABLES[name]()
    return json.dumps(rows, indent=2) if as_json else markdown(rows)


def markdown(rows: Sequence[dict]) -> str:
    """Rows of equal keys as a Markdown table with aligned columns."""
    cells = [list(rows[0]), *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [" | ".join(cell.ljust(w) for cell, w in zip(line, widths)) for line in cells]
    lines.insert(1, "-|-".join("-" * w for w in widths))
    return "\n".join(f"| {line} |" if i != 1 else f"|-{line}-|" for i, line in enumerate(lines))


def _text(value) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def exaflops(model: str, epochs: float) -> float:
    """Of pre-training on JFT-300M at 224 px, as Table 6 counts them.

    ViTs and hybrids have the hidden layer of pre-training before their head (section 3.1).
    """
    options = {} if model.startswith("bit_") else {"pre_logits": True}
    built = create_model(model, num_classes=JFT_CLASSES, **options)
    return training_flops(built, round(epochs * JFT_EXAMPLES)) / EXA


def table6() -> list[dict]:
    """Table 6: accuracies as published, exaFLOPs as published and as counted here."""
    rows = []
    for row in TABLE_6:
        counted = exaflops(row.model, row.epochs)
        rows.append(
            {
                "model": row.title,
                "epochs": row.epochs,
                "ImageNet": row.imagenet,
                "ReaL": row.real,
                "CIFAR-10": row.cifar10,
                "CIFAR-100": row.cifar100,
                "Pets": row.pets,
                "Flowers": row.flowers,
                "exaFLOPs, paper": row.exaflops,
                "exaFLOPs, counted": round(counted, 1),
                "difference %": round(100 * (counted / row.exaflops - 1), 2),
            }
        )
    return rows


TABLES = {"table6": table6}
