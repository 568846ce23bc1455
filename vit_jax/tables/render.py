"""The paper's tables and figures as Markdown or JSON, beside what this package computes."""

from collections.abc import Sequence

from vit_jax.atomic_io import to_json
from vit_jax.errors import ConfigError, nearest
from vit_jax.models.flops import training_flops
from vit_jax.models.registry import create_model
from vit_jax.tables import algoperf, benchmarks, communication, paper_tables, results, vtab
from vit_jax.tables.charts import CHARTS
from vit_jax.tables.paper import JFT_CLASSES, JFT_EXAMPLES, TABLE_6
from vit_jax.tables.studies import STUDIES
from vit_jax.text import markdown_table

EXA = 1e18


def table(
    name: str, as_json: bool = False, files: Sequence[str] = (), out: str | None = None
) -> str:
    """Returns a table by name, as Markdown or JSON.

    Args:
      name: such as 'table5', 'figure4', 'communication' or 'benchmark'.
      as_json: return JSON.
      files: for 'benchmark' and 'figure12', files that `benchmark --out` wrote; for others,
        workdirs of finished runs.
      out: folder to write the plot of the table into.

    Raises:
      ConfigError: there is no such table, or it takes no files or has no plot.
    """
    figures = CHARTS | STUDIES
    names = (*TABLES, *figures, "algoperf", "benchmark", "communication")
    if name not in names:
        raise ConfigError(
            f"no table {name!r}; choose from {', '.join(names)}.{nearest(name, names)}"
        )
    if files and name not in ("algoperf", "benchmark", *paper_tables.CELLS, *figures, "table9"):
        raise ConfigError(f"tables {name} takes no files or workdirs, found {files[0]}.")
    if name == "benchmark" and not files:
        raise ConfigError("tables benchmark needs a FILE that `benchmark --out` wrote.")
    if out and name not in ("communication", *figures):
        plotted = ", ".join(("communication", *figures))
        raise ConfigError(f"tables {name} has no plot; --out is allowed for {plotted}.")
    if name in figures:
        make_rows, plot = figures[name]
        rows = make_rows(files)
        if out:
            plot(rows, out)
        return to_json(rows, indent=2) if as_json else markdown_table(_format_numbers(rows))
    if name == "algoperf":
        return algoperf.format_band(files, as_json)
    if name == "benchmark":
        return benchmarks.format_files(files, as_json)
    if name == "communication":
        if out:
            communication.plot_communication(out)
        return communication.format_communication(as_json)
    rows = TABLES[name]()
    if not files:
        return to_json(rows, indent=2) if as_json else markdown_table(rows)
    if name == "table9":
        return vtab.format_workdirs(files, as_json)
    ours = paper_tables.compare_with_paper(name, results.read_finished_runs(files))
    if as_json:
        return to_json({"paper": rows, "ours": ours}, indent=2)
    below = markdown_table(_format_numbers(ours)) if ours else f"No run belongs to {name}."
    return f"{markdown_table(rows)}\n\n{below}"


def _format_numbers(rows: list[dict]) -> list[dict]:
    """Returns rows with numbers formatted by column: differences signed, costs rounded."""
    formats = {"difference": "{:+.2f}", "exaFLOPs": "{:.4g}", "device-days": "{:.3g}", "lr": "{:g}"}
    return [
        {
            key: formats[key].format(value) if key in formats and value is not None else value
            for key, value in row.items()
        }
        for row in rows
    ]


def exaflops(model: str, epochs: float) -> float:
    """Returns exaFLOPs of pre-training a model on JFT-300M at 224 px, as counted in Table 6.

    ViTs and hybrids have the `pre_logits` hidden layer of pre-training (section 3.1).
    """
    options = {} if model.startswith("bit_") else {"pre_logits": True}
    built = create_model(model, num_classes=JFT_CLASSES, **options)
    return training_flops(built, round(epochs * JFT_EXAMPLES)) / EXA


def table6() -> list[dict]:
    """Returns Table 6: published accuracies, and exaFLOPs as published and as counted here."""
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


TABLES = {  # Name -> function that returns the rows of the paper's table.
    "table1": paper_tables.table1,
    "table2": paper_tables.table2,
    "table3": paper_tables.table3,
    "table4": paper_tables.table4,
    "table5": paper_tables.table5,
    "table6": table6,
    "table7": paper_tables.table7,
    "table8": paper_tables.table8,
    "table9": vtab.paper_rows,
}
