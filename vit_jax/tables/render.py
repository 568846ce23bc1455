"""The paper's tables as Markdown or JSON, beside what this code computes."""

import json
from collections.abc import Sequence

from vit_jax.errors import ConfigError, nearest
from vit_jax.flops import training_flops
from vit_jax.models import create_model
from vit_jax.tables import benchmarks, communication, plots, vtab
from vit_jax.tables.markdown import markdown
from vit_jax.tables.paper import JFT_CLASSES, JFT_EXAMPLES, TABLE_6

EXA = 1e18


def table(
    name: str, as_json: bool = False, files: Sequence[str] = (), out: str | None = None
) -> str:
    """A table by name; raises ConfigError for a name that there is not.

    Args:
      files: results, for the tables that are made of them: files, or workdirs of runs.
      out: a folder for the plots of it, too.
    """
    names = (*TABLES, *OF_RESULTS, *PLOTTED)
    if name not in names:
        raise ConfigError(
            f"no table {name!r}; choose from {', '.join(names)}.{nearest(name, names)}"
        )
    if bool(files) != (name in OF_RESULTS):
        what = f"needs a {OF_RESULTS[name][1]}" if name in OF_RESULTS else f"reads no {files[0]}"
        raise ConfigError(f"tables {name} {what}.")
    if out and name not in PLOTTED:
        raise ConfigError(f"tables {name} has no plot; --out goes with {', '.join(PLOTTED)}.")
    if name in OF_RESULTS:
        render, _ = OF_RESULTS[name]
        return render(files, as_json)
    if name in PLOTTED:
        render, plot = PLOTTED[name]
        if out:
            plot(out)
        return render(as_json)
    rows = TABLES[name]()
    return json.dumps(rows, indent=2) if as_json else markdown(rows)


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
OF_RESULTS = {  # What each is made of.
    "benchmark": (benchmarks.of_files, "FILE of results"),
    "table9": (vtab.of_workdirs, "WORKDIR of runs on VTAB tasks"),
}
PLOTTED = {"communication": (communication.render, plots.communication)}
