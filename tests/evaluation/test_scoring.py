"""Every example of a split is scored once, for any batch size and number of devices."""

import csv
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    top_k_accuracy_score,
)

from vit_jax.config.schema import Data, Task
from vit_jax.data.decode import UnreadableImage
from vit_jax.data.labels import relabelled
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.data.sources import ArraySource
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.errors import CheckpointError, DataError, NonFiniteError
from vit_jax.evaluation import accuracy as accuracy_lib
from vit_jax.evaluation.evaluate import write_tables
from vit_jax.tasks.classification import Classification

K, B, SIZE = 7, 16, (2, 3)
CLASSES = tuple("abcdefg")


def numbered(count: int) -> ArraySource:
    """Image i is of the one grey i, and its label is known from a fixed draw."""
    images = np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, *SIZE, 3)
    )
    labels = np.random.default_rng(count).integers(0, K, count)
    return ArraySource(np.array(images), labels, CLASSES)


class Table:
    """A model that reads the number of an image and looks its logits up."""

    @staticmethod
    def apply(variables, image):
        index = jnp.round((image[:, 0, 0, 0] + 1) * 127.5).astype(int)
        params = variables["params"]
        return (params["table"] if isinstance(params, dict) else params)[index]


@functools.cache
def scorer(mesh, **options):
    score = functools.partial(Classification(Task(), Table).score, **options)
    return jax.jit(score, out_shardings=mesh_lib.replicated(mesh))


def evaluate(source, logits, devices: int = 1, batch_size: int = B, *, only=None, **options):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    score = scorer(mesh, only=only)
    params = jax.device_put(logits, mesh_lib.replicated(mesh))
    return accuracy_lib.score_examples(
        score,
        params,
        source,
        EvalRecipe.from_data(Data(), SIZE),
        batch_size=batch_size,
        sharding=mesh_lib.batch_sharding(mesh),
        **options,
    )


def random_logits() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(256, K)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 7, B - 1, B, B + 1])
def test_every_example_counts_once_on_one_device_and_on_eight(count):
    source, logits = numbered(count), random_logits()
    expected = logits[:count]
    for devices in (1, 8):
        done = []
        scores = evaluate(source, logits, devices, show=done.append)
        assert scores.n == scores.means()["n"] == count
        assert done[-1] == count
        np.testing.assert_array_equal(scores.label, source.labels)
        np.testing.assert_array_equal(scores.prediction, expected.argmax(1))
        # The same integers everywhere, not about the same means.
        assert scores.top1.sum() == (expected.argmax(1) == source.labels).sum()
        best = np.argsort(-expected, axis=1)[:, :5]
        assert scores.top5.sum() == (best == source.labels[:, None]).any(1).sum()


@pytest.mark.stress
@pytest.mark.parametrize("devices", [1, 2, 8])
def test_n_is_the_size_of_the_split_for_any_batch(devices):
    logits = random_logits()
    for batch_size in range(devices, 65, devices):
        for size in {1, batch_size - 1, batch_size, batch_size + 1, 65} - {0}:
            source = numbered(size)
            counts = evaluate(source, logits, devices, batch_size).counts()
            correct = int((logits[:size].argmax(1) == source.labels).sum())
            assert (counts["n"], counts["correct"]) == (size, correct), batch_size


@pytest.mark.parametrize("batch_size", [8, 24, 40, 64])
def test_the_batch_size_changes_no_count(batch_size):
    source, logits = numbered(41), random_logits()
    one, other = evaluate(source, logits), evaluate(source, logits, 8, batch_size)
    for name in ("label", "prediction", "top1", "top5"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_perfect_model_scores_one_and_its_opposite_zero():
    source = numbered(33)
    right = np.zeros((256, K), np.float32)
    right[np.arange(33), source.labels] = 50
    perfect = evaluate(source, right, 8).means()
    assert (perfect["n"], perfect["top1"], perfect["top5"]) == (33, 1.0, 1.0)
    assert perfect["loss"] < 1e-6
    worst = evaluate(source, -right, 8).means()
    assert (worst["top1"], worst["top5"]) == (0.0, 0.0)


def test_means_and_confusion_equal_those_of_scikit_learn():
    source, logits = numbered(100), random_logits()
    scores = evaluate(source, logits, 8)
    means, theirs = scores.means(), logits[:100].astype(np.float64)
    p = np.exp(theirs) / np.exp(theirs).sum(1, keepdims=True)
    known = {"labels": np.arange(K)}
    assert means["top1"] == top_k_accuracy_score(source.labels, p, k=1, **known)
    assert means["top5"] == top_k_accuracy_score(source.labels, p, k=5, **known)
    np.testing.assert_allclose(means["loss"], log_loss(source.labels, p, **known), rtol=1e-6)
    np.testing.assert_allclose(scores.probability, p.max(1), rtol=1e-5)
    np.testing.assert_array_equal(
        scores.confusion(K), confusion_matrix(source.labels, p.argmax(1), **known)
    )


def test_class_means_and_calibration_are_those_of_their_definitions():
    source, logits = numbered(100), random_logits()
    means = evaluate(source, logits, 8).means()
    predicted, theirs = logits[:100].argmax(1), logits[:100].astype(np.float64)
    np.testing.assert_allclose(
        means["mean_per_class"], balanced_accuracy_score(source.labels, predicted)
    )
    p = (np.exp(theirs) / np.exp(theirs).sum(1, keepdims=True)).max(1)
    error = 0.0  # Equation 3 of arXiv:1706.04599, bin by bin.
    for m in range(15):
        inside = (p > m / 15) & (p <= (m + 1) / 15)
        if inside.any():
            accuracy = (predicted == source.labels)[inside].mean()
            error += inside.sum() / 100 * abs(accuracy - p[inside].mean())
    np.testing.assert_allclose(means["ece"], error, rtol=1e-5)


def test_a_class_without_examples_is_no_part_of_their_mean():
    label, best = np.array([0, 3, 3, 3]), np.array([[0], [3], [1], [2]])
    scores = accuracy_lib.ExampleScores(label, best, np.ones(4), np.zeros(4))
    assert scores.mean_per_class() == (1 + 1 / 3) / 2


def test_any_of_several_labels_is_right_and_an_example_without_one_does_not_count():
    best = np.array([[4, 0, 1, 2, 3], [5, 0, 1, 2, 3], [6, 0, 1, 2, 3], [0, 1, 2, 3, 4]])
    scores = accuracy_lib.ExampleScores(np.zeros(4, int), best, np.ones(4), np.zeros(4))
    found = scores.with_label_sets([(1, 4), (6, 3), (), (5,)])
    assert (found["n"], found["correct"], found["correct5"]) == (3, 1, 2)
    assert (found["top1"], found["top5"]) == (1 / 3, 2 / 3)


def test_only_the_classes_asked_for_are_predicted():
    source, logits = numbered(60), random_logits()
    only = (1, 3, 4)
    scores = evaluate(source, logits, 8, only=only)
    expected = np.array(only)[logits[:60][:, only].argmax(1)]
    np.testing.assert_array_equal(scores.prediction, expected)
    p = np.exp(logits[:60][:, only])
    np.testing.assert_allclose(scores.probability, (p / p.sum(1, keepdims=True)).max(1), rtol=1e-5)


def test_confusion_has_a_row_per_label_and_a_column_per_prediction():
    label, prediction = np.array([0, 2, 2, 2]), np.array([1, 2, 2, 0])
    scores = accuracy_lib.ExampleScores(label, prediction[:, None], *[np.zeros(4)] * 2)
    assert scores.confusion(3).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 2]]


def test_worker_processes_change_no_score():
    source, logits = numbered(19), random_logits()
    one, other = (evaluate(source, logits, data=Data(workers=workers)) for workers in (0, 1))
    for each in dataclasses.fields(one):
        np.testing.assert_array_equal(getattr(one, each.name), getattr(other, each.name))


def test_a_stopped_evaluation_returns_nothing():
    done = []
    options = {"show": done.append, "is_stopped": lambda: bool(done)}
    assert evaluate(numbered(6 * B), random_logits(), **options) is None
    assert len(done) <= 3, "two batches are ahead"


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_rejected(number):
    logits = random_logits()
    logits[5, 2] = number
    with pytest.raises(CheckpointError, match=r"^x\.npz: table contains values that"):
        evaluate(numbered(9), {"table": logits}, where="x.npz")
    with pytest.raises(NonFiniteError, match=r"^evaluation: table contains"):
        evaluate(numbered(9), {"table": logits})
    assert evaluate(numbered(5), {"table": logits}).n == 5  # Image 5 is padding of the batch.


class Holes(ArraySource):
    """Numbered images, every fourth of which cannot be read."""

    def __getitem__(self, index: int) -> dict:
        if index % 4 == 3:
            raise UnreadableImage(f"{index}: unreadable image (by hand).")
        return super().__getitem__(index)


def test_skipped_images_are_counted_beside_n_and_change_no_other_score(tmp_path):
    whole, logits = numbered(19), random_logits()
    source = Holes(whole.images, whole.labels, CLASSES)
    with pytest.raises(DataError, match=r"^3: unreadable image .*data\.on_bad_image=skip"):
        evaluate(source, logits)
    skip = Data(on_bad_image="skip", max_bad=0.5)
    scores, every = evaluate(source, logits, data=skip), evaluate(whole, logits)
    readable = np.flatnonzero(np.arange(19) % 4 != 3)
    np.testing.assert_array_equal(scores.index, readable)
    for name in ("label", "best", "probability", "loss"):
        np.testing.assert_array_equal(getattr(scores, name), getattr(every, name)[readable])
    assert (scores.means()["n"], scores.means()["bad_images"]) == (15, 4)
    assert "bad_images" not in every.means()
    write_tables(tmp_path, "val", scores, source, CLASSES)
    rows = list(csv.DictReader((tmp_path / "predictions-val.csv").open()))
    assert [int(row["id"]) for row in rows] == readable.tolist()
    sets = [[label] for label in whole.labels.tolist()]
    assert scores.with_label_sets(sets)["correct"] == scores.counts()["correct"]
    with pytest.raises(DataError, match=r"4 of 19 images .* more than data\.max_bad=0\.001"):
        evaluate(source, logits, data=Data(on_bad_image="skip"))


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="empty"):
        evaluate(numbered(0), random_logits())


def test_labels_of_the_data_are_counted_as_the_model_counts_them():
    data = ArraySource(np.zeros((3, *SIZE, 3), np.uint8), np.array([0, 1, 1]), ("cat", "ant"))
    source = relabelled(data, ("ant", "bee", "cat"))
    assert [source[i]["label"] for i in range(3)] == [2, 0, 0]
    assert len(source) == 3
    assert source.name(2) == "2"


@pytest.mark.parametrize(
    "label",
    [
        -1,
        9,
        2,
    ],
)
def test_a_label_that_the_data_has_no_class_for_is_refused(label):
    data = ArraySource(np.zeros((1, *SIZE, 3), np.uint8), np.array([label]), ("cat", "ant"))
    with pytest.raises(DataError, match=f"label {label} is out of range"):
        evaluate(relabelled(data, ("ant", "cat")), random_logits())


def test_tables_name_classes_and_add_up(tmp_path):
    source, logits = numbered(50), random_logits()
    scores = evaluate(source, logits)
    write_tables(tmp_path, "val", scores, source, CLASSES)
    tables = {}
    for name in ("predictions", "per_class", "confusion"):
        with open(tmp_path / f"{name}-val.csv", newline="") as file:
            tables[name] = list(csv.DictReader(file))
    predicted = logits[:50].argmax(1)
    assert [row["id"] for row in tables["predictions"]] == [str(i) for i in range(50)]
    assert [row["label"] for row in tables["predictions"]] == [CLASSES[k] for k in source.labels]
    assert [row["prediction"] for row in tables["predictions"]] == [CLASSES[k] for k in predicted]
    counts = [[int(row[c]) for c in CLASSES] for row in tables["confusion"]]
    np.testing.assert_array_equal(
        counts, confusion_matrix(source.labels, predicted, labels=np.arange(K))
    )
    for k, row in enumerate(tables["per_class"]):
        assert row["class"] == CLASSES[k]
        assert int(row["n"]) == (source.labels == k).sum()
        hits = ((source.labels == k) & (predicted == k)).sum()
        assert int(row["correct"]) == hits
        assert float(row["top1"]) == pytest.approx(hits / int(row["n"]), abs=1e-6)
    assert not list(tmp_path.glob("*.tmp"))
