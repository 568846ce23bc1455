"""Scores every example of a split exactly once, and writes the scores."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

from vit_jax.atomic_io import write_atomically
from vit_jax.checkpoints import workdir
from vit_jax.checkpoints.local_copy import url_of
from vit_jax.config.fields import expand_home
from vit_jax.data import labels as labels_lib
from vit_jax.data.overview import describe_splits
from vit_jax.data.sources import check_classes
from vit_jax.distributed.progress import Progress
from vit_jax.errors import DataError
from vit_jax.evaluation import accuracy, scoring, setup
from vit_jax.text import csv_table, print_line


@dataclasses.dataclass(frozen=True)
class Scores:
    """Accuracy of a model on a split.

    With sets of correct labels, as in ReaL (arXiv:2006.07159), `metrics` are those of the sets.
    """

    metrics: dict  # n, top1, top5, and without label sets loss, mean_per_class and ece.
    size: int  # Examples of the split; with label sets, those that have a label.
    split: str
    report: dict  # Contents of eval-<split>.json.
    examples: accuracy.ExampleScores
    source: object  # The records of the split.
    classes: tuple[str, ...]  # Class names of the model.
    has_labels: bool  # False if the split has label sets only.

    @property
    def n(self) -> int:
        """Number of examples counted."""
        return self.metrics["n"]

    @property
    def top1(self) -> float:
        return self.metrics["top1"]

    @property
    def top5(self) -> float:
        return self.metrics["top5"]

    def __str__(self) -> str:
        bad = f" bad_images={self.examples.num_bad}" if self.examples.num_bad else ""
        return f"top1={self.top1:.4f} top5={self.top5:.4f} n={self.n}/{self.size}{bad}"

    def write(self, folder: pathlib.Path) -> list[pathlib.Path]:
        """Writes `eval-<split>.json` and three CSV tables; returns the paths."""
        folder.mkdir(parents=True, exist_ok=True)
        split = self.split.replace("/", "_")
        path = folder / f"eval-{split}.json"
        workdir.write_json(path, self.report)
        if not self.has_labels:
            return [path]
        return [path, *write_tables(folder, split, self.examples, self.source, self.classes)]


def evaluate(
    where: str | pathlib.Path,
    split: str | None = None,
    *,
    overrides: Mapping[str, object] | None = None,
    out: str | pathlib.Path | None = None,
    class_map: str | None = None,
    restrict: bool = False,
    label_sets: str | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Scores every example of a split once.

    Args:
      where: a workdir, checkpoint, file of weights or published name.
      split: split to score; None for the split that the run scores, `data.val_split`.
      overrides: values of config fields `data.KEY` and `batch_size`.
      out: folder for `eval-<split>.json`, `predictions-<split>.csv`, `per_class-<split>.csv`
        and `confusion-<split>.csv`; None to write no files.
      class_map: file with the class of the model, by name or number, for each class of the data.
      restrict: predict the classes of the data only, as for ImageNet-A and ImageNet-R.
      label_sets: JSON file with all correct labels of each example, as in ReaL.
      progress: shows the number of examples done.

    Raises ConfigError, DataError or CheckpointError, in one line.
    """
    overrides = dict(overrides or {}) | ({"data.split": split} if split else {})
    prepared = setup.prepare_setup(where, overrides)
    scores = score_split(
        prepared, class_map=class_map, restrict=restrict, label_sets=label_sets, progress=progress
    )
    if out is not None:
        scores.write(pathlib.Path(expand_home(str(out))))
    return scores


def score_split(
    prepared: setup.EvaluationSetup,
    *,
    class_map: str | None = None,
    restrict: bool = False,
    label_sets: str | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Scores the split of an evaluation setup; the options are those of `evaluate`."""
    loaded = prepared.loaded
    loaded.require_head()
    split = prepared.split()
    source = prepared.open_scored(split)
    check_classes(source, prepared.config.data, "accuracy")
    for line in describe_splits({split: source}):
        print_line(line)
    relabelled = _with_model_labels(source, loaded, class_map)
    model_labels = (
        relabelled.table.tolist() if isinstance(relabelled, labels_lib.Relabelled) else None
    )
    sets = _label_sets(label_sets, source, len(loaded.classes), model_labels)
    only = sorted(set(model_labels or range(len(source.classes)))) if restrict else None
    examples = accuracy.score_examples(
        scoring.make_score(prepared.model, prepared.mesh, prepared.task, only=only),
        prepared.params,
        relabelled,
        dataclasses.replace(prepared.recipe, crops=prepared.config.data.eval_crops),
        show=lambda done: progress and progress.show(f"{done}/{len(source)} examples"),
        **prepared.options,
    )
    report = {"split": split, "checkpoint": url_of(loaded.weights.where), "size": len(source)}
    has_labels = getattr(source, "has_own_labels", True)
    metrics, size = examples.means(), len(source)
    if has_labels:
        report |= examples.counts() | metrics
    if sets is not None:
        metrics, size = examples.with_label_sets(sets), sum(map(bool, sets))
        report["label_sets"] = metrics
        if not size:
            raise DataError(f"split {split!r}: all of its label sets are empty.")
    return Scores(metrics, size, split, report, examples, source, loaded.classes, has_labels)


def _with_model_labels(source, loaded, class_map: str | None):
    """Returns the source with labels of the model; raises DataError for an unknown class."""
    if class_map is not None:
        numbers = labels_lib.read_class_map(class_map, len(source.classes), loaded.classes)
        return labels_lib.Relabelled(source, loaded.classes, numbers)
    relabelled = labels_lib.relabelled(
        source,
        loaded.classes,
        loaded.weights.where,
        has_names=loaded.has_class_names,
        hint=labels_lib.MAP_HINT,
    )
    if getattr(relabelled, "note", ""):
        print_line(f"{loaded.weights.where}: {relabelled.note}.")
    return relabelled


def _label_sets(
    file: str | None, source, num_classes: int, model_labels: list[int] | None
) -> Sequence[Sequence[int]] | None:
    """Returns all correct labels of every example, from a file or from the data, or None.

    Args:
      model_labels: labels of the model for the classes of the data, if they differ; a file
        holds labels of the model.

    Raises DataError for a file that does not fit the split.
    """
    if file is None:
        sets = getattr(source, "label_sets", None)
        if sets and model_labels:
            return [[model_labels[label] for label in labels] for labels in sets]
        return sets
    try:
        sets = json.loads(pathlib.Path(file).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"--label_sets={file} cannot be read: {error}.") from error
    if not isinstance(sets, list) or len(sets) != len(source):
        found = f"{len(sets)} entries" if isinstance(sets, list) else "no list"
        raise DataError(f"--label_sets={file} holds {found}; the split has {len(source)} examples.")
    for index, labels in enumerate(sets):
        is_valid = isinstance(labels, list) and all(
            type(label) is int and 0 <= label < num_classes for label in labels
        )
        if not is_valid:
            raise DataError(
                f"--label_sets={file}: entry {index} is {labels!r}; expected a list of labels "
                f"from 0 to {num_classes - 1}, which may be empty."
            )
    return sets


def write_tables(
    folder: pathlib.Path, split: str, examples: accuracy.ExampleScores, source, classes
) -> list[pathlib.Path]:
    """Writes predictions, accuracy per class and the confusion matrix as CSV; returns the paths."""
    confusion = examples.confusion(len(classes))
    rows = zip(
        examples.index, examples.label, examples.prediction, examples.probability, strict=True
    )
    predictions = (
        (source.name(int(i)), classes[label], classes[prediction], f"{probability:.6f}")
        for i, label, prediction, probability in rows
    )
    per_class = (
        (title, total, hits, f"{hits / total:.6f}" if total else "")
        for title, total, hits in zip(classes, confusion.sum(1), confusion.diagonal(), strict=True)
    )
    counts = ((title, *row) for title, row in zip(classes, confusion, strict=True))
    tables = {
        "predictions": (("id", "label", "prediction", "probability"), predictions),
        "per_class": (("class", "n", "correct", "top1"), per_class),
        "confusion": (("label", *classes), counts),
    }
    paths = []
    for name, (header, rows) in tables.items():
        paths.append(folder / f"{name}-{split}.csv")
        write_atomically(paths[-1], csv_table(header, rows))
    return paths
