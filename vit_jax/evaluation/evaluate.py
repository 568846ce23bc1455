"""Scores every example of a split exactly once and writes what was found."""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping, Sequence

from vit_jax.atomic_io import write_atomically
from vit_jax.checkpoints import workdir
from vit_jax.data.labels import Relabelled
from vit_jax.distributed.progress import Progress
from vit_jax.errors import ConfigError, DataError, nearest
from vit_jax.evaluation import accuracy, scoring, setup


def evaluate(
    where: str,
    overrides: Mapping[str, str],
    out: str | None = None,
    *,
    class_map: str | None = None,
    restrict: bool = False,
    label_sets: str | None = None,
) -> str:
    """Evaluates a checkpoint; returns the closing line.

    Writes `eval-<split>.json`, `predictions-<split>.csv`, `per_class-<split>.csv` and
    `confusion-<split>.csv` into the run's folder, or `out`.

    Args:
      where: a workdir, checkpoint or `.npz`.
      overrides: `data.KEY` and `batch_size`, as texts; `data.split` names the split to
        score, which else is the run's `data.val_split`.
      class_map: a file with the model's class, its name or number, for each class of the data.
      restrict: predict among the classes of the data alone, as ImageNet-A and -R are scored.
      label_sets: a JSON file of all right labels of each example, as ReaL's (arXiv:2006.07159).
    """
    seen = setup.prepare(where, overrides)
    loaded = seen.loaded
    loaded.refuse_without_head()
    split, folder = seen.split(), seen.folder(out)
    source = seen.open(split)
    counted = _as_the_model_counts(source, loaded, class_map)
    places = counted.table.tolist() if isinstance(counted, Relabelled) else None
    sets = _label_sets(label_sets, source, len(loaded.classes), places)
    only = None
    if restrict:
        only = sorted(set(places or range(len(source.classes))))
    progress = Progress(seconds_between=10)
    scores = accuracy.evaluate(
        scoring.make_score(seen.model, seen.mesh, seen.task, only=only),
        seen.params,
        counted,
        dataclasses.replace(seen.recipe, crops=seen.config.data.eval_crops),
        show=lambda done: progress.show(f"{done}/{len(source)} examples"),
        **seen.options,
    )
    name = split.replace("/", "_")
    report = {"split": split, "checkpoint": loaded.weights.where, "size": len(source)}
    has_labels = getattr(source, "has_own_labels", True)
    report |= scores.counts() | scores.means() if has_labels else {}
    told, size = report, len(source)
    if sets is not None:
        told, size = scores.against(sets), sum(map(bool, sets))
        report["label_sets"] = told
        if not size:
            raise DataError(f"split {split!r}: all of its sets of labels are empty.")
    workdir.write_json(folder / f"eval-{name}.json", report)
    if has_labels:
        write_tables(folder, name, scores, source, loaded.classes)
    words = " and three tables beside it" if has_labels else ""
    progress.print_line(f"wrote {folder}/eval-{name}.json{words}")
    return f"top1={told['top1']:.4f} top5={told['top5']:.4f} n={told['n']}/{size}"


def _as_the_model_counts(source, loaded, class_map: str | None):
    """The source with the labels of the model; raises DataError for a class it never saw."""
    if class_map is not None:
        return Relabelled(source, loaded.classes, _read_map(class_map, source, loaded.classes))
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
                f"of {loaded.weights.where}.{nearest(title, loaded.classes)} --class_map=FILE "
                "says which of them it is."
            )
    return Relabelled(source, loaded.classes)


def _read_map(file: str, source, classes: tuple[str, ...]) -> tuple[int, ...]:
    """The model's class of each class of the data; raises ConfigError for a file that errs."""
    try:
        lines = pathlib.Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--class_map={file} cannot be read: {error}.") from error
    if len(lines) != len(source.classes):
        raise ConfigError(
            f"--class_map={file} has {len(lines)} lines; the data has {len(source.classes)} "
            "classes, and each has a line."
        )
    found = []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if classes.count(text) == 1:
            found.append(classes.index(text))
        elif text.isdecimal() and int(text) < len(classes):
            found.append(int(text))
        else:
            what = "the name of several classes" if text in classes else "no class"
            raise ConfigError(
                f"--class_map={file}, line {number}: {text!r} is {what} of the model; give its "
                f"number, 0 to {len(classes) - 1}.{nearest(text, classes)}"
            )
    return tuple(found)


def _label_sets(
    file: str | None, source, num_classes: int, places: list[int] | None
) -> Sequence[Sequence[int]] | None:
    """All right labels of every example, from a file or from the data, or None.

    Args:
      places: the model's numbers of the classes of the data, where they differ; a file has the
        model's.

    Raises DataError for a file that does not fit.
    """
    if file is None:
        sets = getattr(source, "label_sets", None)
        return [[places[k] for k in labels] for labels in sets] if sets and places else sets
    try:
        sets = json.loads(pathlib.Path(file).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"--label_sets={file} cannot be read: {error}.") from error
    if not isinstance(sets, list) or len(sets) != len(source):
        found = f"{len(sets)} entries" if isinstance(sets, list) else "no list"
        raise DataError(f"--label_sets={file} holds {found}; the split has {len(source)} examples.")
    for place, labels in enumerate(sets):
        fits = isinstance(labels, list) and all(
            type(label) is int and 0 <= label < num_classes for label in labels
        )
        if not fits:
            raise DataError(
                f"--label_sets={file}: entry {place} is {labels!r}; it must be a list of labels "
                f"from 0 to {num_classes - 1}, perhaps empty."
            )
    return sets


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
    write_atomically(path, table.getvalue())
