"""The paper's tables as Markdown or JSON, beside what this code computes."""

import json
from collections.abc import Sequence

from vit_jax.errors import ConfigError, nearest
from vit_jax.markdown import markdown
from vit_jax.models.flops import training_flops
from vit_jax.models.registry import create_model
from vit_jax.tables import benchmarks, communication, paper_tables, plots, results, vtab
from vit_jax.tables.charts import CHARTS
from vit_jax.tables.paper import JFT_CLASSES, JFT_EXAMPLES, TABLE_6
from vit_jax.tables.studies import STUDIES

EXA = 1e18


def table(
    name: str, as_json: bool = False, files: Sequence[str] = (), out: str | None = None
) -> str:
    """A table by name; raises ConfigError for a name that there is not.

    Args:
      files: results, for the tables that are made of them: files, or workdirs of runs, which
        the paper's tables have beside their own numbers.
      out: a folder for the plots of it, too.
    """
    drawn = CHARTS | STUDIES
    names = (*TABLES, *drawn, *OF_RESULTS, *PLOTTED)
    if name not in names:
        raise ConfigError(
            f"no table {name!r}; choose from {', '.join(names)}.{nearest(name, names)}"
        )
    if files and name not in (*OF_RESULTS, *paper_tables.CELLS, *drawn, "table9"):
        raise ConfigError(f"tables {name} reads no {files[0]}.")
    if not files and name in OF_RESULTS:
        raise ConfigError(f"tables {name} needs a {OF_RESULTS[name][1]}.")
    if out and name not in (*PLOTTED, *drawn):
        plotted = ", ".join((*PLOTTED, *drawn))
        raise ConfigError(f"tables {name} has no plot; --out goes with {plotted}.")
    if name in drawn:
        find, plot = drawn[name]
        rows = find(files)
        if out:
            plot(rows, out)
        return json.dumps(rows, indent=2) if as_json else markdown(_told(rows))
    if name in OF_RESULTS:
        render, _ = OF_RESULTS[name]
        return render(files, as_json)
    if name in PLOTTED:
        render, plot = PLOTTED[name]
        if out:
            plot(out)
        return render(as_json)
    rows = TABLES[name]()
    if not files:
        return json.dumps(rows, indent=2) if as_json else markdown(rows)
    if name == "table9":
        return vtab.of_workdirs(files, as_json)
    ours = paper_tables.beside(name, results.read(files))
    if as_json:
        return json.dumps({"paper": rows, "ours": ours}, indent=2)
    told = markdown(_told(ours)) if ours else "No cell of it is of these runs."
    return f"{markdown(rows)}\n\n{told}"


def _told(rows: list[dict]) -> list[dict]:
    """Rows for people: a sign before a difference, a dash where nothing is known."""
    formats = {"difference": "{:+.2f}", "exaFLOPs": "{:.4g}", "device-days": "{:.3g}", "lr": "{:g}"}
    return [
        {
            key: "-" if value is None else formats[key].format(value) if key in formats else value
            for key, value in row.items()
        }
        for row in rows
    ]


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


TABLES = {
    "table1": paper_tables.table1,
    "table2": paper_tables.table2,
    "table3": paper_tables.table3,
    "table4": paper_tables.table4,
    "table5": paper_tables.table5,
    "table6": table6,
    "table7": paper_tables.table7,
    "table8": paper_tables.table8,
    "table9": vtab.published,
}
OF_RESULTS = {  # What each is made of.
    "benchmark": (benchmarks.of_files, "FILE of results"),
}
PLOTTED = {"communication": (communication.render, plots.communication)}
