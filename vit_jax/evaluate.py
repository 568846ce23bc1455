"""Scores every example of a split exactly once and writes what was found."""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Mapping

import jax

from vit_jax import assemble, load, metrics, sharding, workdir
from vit_jax import config as config_lib
from vit_jax.data.classes import Relabelled
from vit_jax.data.sources import open_split
from vit_jax.errors import ConfigError, DataError, nearest
from vit_jax.evaluators import classification
from vit_jax.files import write_whole
from vit_jax.schema import Config, Task

AMENDABLE = ("data.", "batch_size")


def evaluate(where: str, overrides: Mapping[str, str], out: str | None = None) -> str:
    """Evaluates a checkpoint; returns the closing line.

    Writes `eval-<split>.json`, `predictions-<split>.csv`, `per_class-<split>.csv` and
    `confusion-<split>.csv` into the run's folder, or `out`.

    Args:
      where: a workdir, checkpoint or `.npz`.
      overrides: `data.KEY` and `batch_size`, as texts; `data.split` names the split to
        score, which else is the run's `data.val_split`.
    """
    loaded = load.load(where)
    loaded.refuse_without_head()
    config, split = _amended(loaded, overrides)
    source = _as_the_model_counts(open_split(config.data, split), loaded)
    folder = pathlib.Path(out) if out else loaded.folder or pathlib.Path()
    folder.mkdir(parents=True, exist_ok=True)
    mesh = sharding.make_mesh()
    batch_size = -(-config.batch_size // mesh.size) * mesh.size
    params = jax.device_put(loaded.params(), sharding.replicated(mesh))
    progress = metrics.Progress(seconds_between=10)
    recipe = dataclasses.replace(
        loaded.recipe,
        crop=config.data.eval_crop,
        resample=config.data.resample,
        crop_fraction=config.data.crop_fraction,
    )
    scores = classification.evaluate(
        assemble.make_score(loaded.model, mesh, loaded.config.task if loaded.config else Task()),
        params,
        source,
        recipe,
        batch_size=batch_size,
        sharding=sharding.batch_sharding(mesh),
        workers=config.data.workers,
        show=lambda done: progress.show(f"{done}/{len(source)} examples"),
    )
    name = split.replace("/", "_")
    means = scores.means()
    report = {"split": split, "checkpoint": loaded.weights.where, "size": len(source), **means}
    workdir.write_json(folder / f"eval-{name}.json", report)
    write_tables(folder, name, scores, source, loaded.classes)
    progress.say(f"wrote {folder}/eval-{name}.json and three tables beside it")
    return f"top1={means['top1']:.4f} top5={means['top5']:.4f} n={means['n']}/{len(source)}"


def _amended(loaded: load.Loaded, overrides: Mapping[str, str]) -> tuple[Config, str]:
    """The run's config with what the command line changes, and the split to score."""
    for key in overrides:
        if not key.startswith(AMENDABLE):
            raise ConfigError(f"--config.{key}: evaluate takes config.data... and batch_size only.")
    if loaded.config is None and "data.source" not in overrides:
        raise ConfigError(
            "these weights hold no config; name the data, as in --config.data.source=folder."
        )
    if loaded.config is None:
        amended = config_lib.base_config()
        amended.steps = 1  # Nothing trains; the door wants one length.
        amended.batch_size = 64
        amended.data.image_size = loaded.model.image_size
        amended.data.update(
            eval_crop=loaded.recipe.crop,
            resample=loaded.recipe.resample,
            crop_fraction=loaded.recipe.crop_fraction,
        )
    else:
        amended = config_lib.to_config_dict({"": loaded.config})
    for key, text in overrides.items():
        config_lib.override(amended, key, text)
    config = config_lib.check(amended)[""]
    size = config.data.image_size
    if ((size, size) if isinstance(size, int) else size) != loaded.model.image_size:
        raise ConfigError(
            f"config.data.image_size is {size}; these weights take {loaded.model.image_size}."
        )
    split = config.data.split if "data.split" in overrides else config.data.val_split
    if not split:
        raise ConfigError("this run has no data.val_split; name one by --config.data.split.")
    return config, split


def _as_the_model_counts(source, loaded: load.Loaded):
    """The source with the labels of the model; raises DataError for a class it never saw."""
    if source.classes == loaded.classes:
        return source
    is_foreign = loaded.folder is None and len(source.classes) == len(loaded.classes)
    if is_foreign and not set(source.classes) & set(loaded.classes):
        if loaded.has_class_names:
            print("the weights have other names for the classes: label k is scored as output k.")
        return source  # Other words for the classes, or none.
    for title in source.classes:
        if title not in loaded.classes:
            raise DataError(
                f"class {title!r} of the data is not among the {len(loaded.classes)} classes "
                f"of {loaded.weights.where}.{nearest(title, loaded.classes)}"
            )
    return Relabelled(source, loaded.classes)


def write_tables(folder: pathlib.Path, split: str, scores, source, classes) -> None:
    """Predictions, per-class accuracy and confusion counts as CSV with class names."""
    confusion = scores.confusion(len(classes))
    predictions = (
        (source.name(i), classes[scores.label[i]], classes[k], f"{scores.probability[i]:.6f}")
        for i, k in enumerate(scores.prediction)
    )
    header = ("id", "label", "prediction", "probability")
    _write_csv(folder / f"predictions-{split}.csv", header, predictions)
    per_class = (
        (title, total, hits, f"{hits / total:.6f}" if total else "")
        for title, total, hits in zip(classes, confusion.sum(1), confusion.diagonal(), strict=True)
    )
    header = ("class", "n", "correct", "top1")
    _write_csv(folder / f"per_class-{split}.csv", header, per_class)
    counts = ((title, *row) for title, row in zip(classes, confusion, strict=True))
    _write_csv(folder / f"confusion-{split}.csv", ("label", *classes), counts)


def _write_csv(path: pathlib.Path, header, rows) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_whole(path, table.getvalue())
