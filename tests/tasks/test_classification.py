"""The loss of a training batch and the scores of an evaluated batch, against numpy."""

import jax
import numpy as np
import pytest

from tests.support.tiny import some_images, some_params, tiny
from vit_jax import create_model
from vit_jax.config.schema import Model, Task
from vit_jax.models import trees
from vit_jax.models.registry import param_shapes
from vit_jax.tasks.classification import Classification

LOGITS = np.array(
    [[3, 1, 0, 2, -1, -2, -3], [0, 5, 4, 3, 2, 1, -1], [1, 2, 3, 4, 5, 6, 7]], np.float32
)


class Identity:
    """A model whose logits are its images; it records its calls."""

    config = Model()

    def __init__(self):
        self.calls = []

    def apply(self, variables, images, **kwargs):
        self.calls.append((variables, kwargs))
        return images


def batch(labels, mask=(1, 1, 1)):
    return {"image": LOGITS, "label": np.array(labels), "mask": np.array(mask, np.float32)}


def task(**options):
    return Classification(Task(**options), Identity())


def log_probabilities():
    return LOGITS - np.log(np.exp(np.float64(LOGITS)).sum(-1, keepdims=True))


def test_loss_is_the_mean_cross_entropy_of_the_unmasked_examples():
    loss, metrics = task().loss({}, batch([0, 2, 6], mask=[1, 1, 0]), jax.random.key(0))
    expected = -(log_probabilities()[0, 0] + log_probabilities()[1, 2]) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert metrics == {"top1": 0.5}  # Not 2/3: the third prediction is right, but masked.


def test_loss_calls_the_model_with_dropout_and_the_given_key():
    model, key = Identity(), jax.random.key(3)
    Classification(Task(), model).loss({"a": 1}, batch([0, 1, 2]), key)
    ((variables, kwargs),) = model.calls
    assert variables == {"params": {"a": 1}}
    assert kwargs == {"train": True, "rngs": {"dropout": key}}


def test_score_gives_arrays_of_examples_without_dropout():
    model = Identity()
    scores = Classification(Task(), model).score({}, batch([0, 6, 2]))
    assert model.calls == [({"params": {}}, {})]
    shapes = {name: array.shape for name, array in scores.items()}
    assert shapes == {"loss": (3,), "probability": (3,), "best": (3, 5)}
    np.testing.assert_array_equal(scores["best"][:, 0], [0, 1, 6])
    in_five = [label in best for label, best in zip([0, 6, 2], np.array(scores["best"]))]
    assert in_five == [True, False, True]
    losses, best = -log_probabilities()[[0, 1, 2], [0, 6, 2]], log_probabilities().max(-1)
    np.testing.assert_allclose(scores["loss"], losses, rtol=1e-6)
    np.testing.assert_allclose(scores["probability"], np.exp(best), rtol=1e-6)


@pytest.mark.parametrize(("label", "hit"), [(6, True), (2, True), (1, False), (0, False)])
def test_score_best_has_the_five_most_probable_classes(label, hit):
    best = np.array(task().score({}, batch([0, 0, label]))["best"])
    assert (label in best[2]) == hit


def test_score_best_of_fewer_than_five_classes_has_all_of_them():
    few = batch([0, 1, 2]) | {"image": LOGITS[:, :3]}
    best = np.array(task().score({}, few)["best"])
    np.testing.assert_array_equal(np.sort(best, axis=1), [[0, 1, 2]] * 3)


def test_loss_of_a_vit_has_dropout_and_its_score_has_none():
    model = create_model(
        "vit_ti16",
        num_classes=3,
        image_size=8,
        patch=4,
        num_layers=1,
        hidden_size=8,
        mlp_size=8,
        num_heads=2,
        dropout=0.5,
    )
    random = np.random.default_rng(0)
    params = trees.unflatten(
        {name: random.normal(size=shape) for name, shape in param_shapes(model).items()}
    )
    real = batch([0, 1, 2]) | {"image": np.ones((3, 8, 8, 3), np.float32)}
    objective = Classification(Task(), model)
    loss = jax.jit(lambda key: objective.loss(params, real, key)[0])
    assert loss(jax.random.key(0)) != loss(jax.random.key(1))
    assert loss(jax.random.key(0)) == loss(jax.random.key(0))
    scores = jax.jit(objective.score)(params, real)
    # With dropout, equal images would get different scores.
    assert len(set(map(float, scores["probability"]))) == 1


def test_loss_of_mixed_images_uses_targets_and_its_top1_the_labels():
    targets = np.zeros((3, 7), np.float32)
    targets[:, 1], targets[:, 6] = 0.75, 0.25
    mixed = batch([0, 1, 1]) | {"targets": targets}
    loss, metrics = task().loss({}, mixed, jax.random.key(0))
    np.testing.assert_allclose(loss, -(targets * log_probabilities()).sum(-1).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["top1"], 2 / 3, rtol=1e-6)


def test_loss_with_label_smoothing_gives_every_class_a_share():
    loss, _ = task(label_smoothing=0.1).loss({}, batch([0, 1, 6]), jax.random.key(0))
    smooth = np.eye(7)[[0, 1, 6]] * 0.9 + 0.1 / 7
    np.testing.assert_allclose(loss, -(smooth * log_probabilities()).sum(-1).mean(), rtol=1e-6)


@pytest.mark.parametrize("distill", ["soft", "hard"])
def test_loss_gives_distillation_its_weight(distill):
    teacher = LOGITS[:, ::-1]
    given = batch([0, 1, 6]) | {"teacher": teacher}
    options = {"distill": distill, "distill_weight": 0.25, "temperature": 2.0}
    loss, _ = task(**options).loss({}, given, jax.random.key(0))
    plain, _ = task().loss({}, batch([0, 1, 6]), jax.random.key(0))
    if distill == "hard":
        distilled = -log_probabilities()[np.arange(3), teacher.argmax(-1)].mean()
    else:
        p, q = (np.exp(x / 2) / np.exp(x / 2).sum(-1, keepdims=True) for x in (teacher, LOGITS))
        distilled = 4 * (p * np.log(p / q)).sum(-1).mean()
    np.testing.assert_allclose(loss, 0.75 * plain + 0.25 * distilled, rtol=1e-5)


@pytest.mark.parametrize("name", ["sigmoid", "binary"])
def test_score_has_the_loss_that_training_minimizes(name):
    trained, _ = task(loss=name).loss({}, batch([0, 1, 6]), jax.random.key(0))
    scored = task(loss=name).score({}, batch([0, 1, 6]))["loss"]
    np.testing.assert_allclose(trained, scored.mean(), rtol=1e-6)
    p = 1 / (1 + np.exp(-np.float64(LOGITS)))
    each = -np.where(np.eye(7)[[0, 1, 6]] == 1, np.log(p), np.log(1 - p))
    expected = each.sum(-1) if name == "sigmoid" else each.mean(-1)
    np.testing.assert_allclose(scored, expected, rtol=1e-5)


def squared_error(logits, labels):
    """A loss of a user's own."""
    return jax.numpy.square(logits - jax.nn.one_hot(labels, logits.shape[-1])).sum(-1)


def test_classification_accepts_a_loss_function_of_ones_own():
    own = f"{__name__}:squared_error"
    scores = task(loss=own).score({}, batch([0, 1, 6]))
    errors = np.square(LOGITS - np.eye(7)[[0, 1, 6]]).sum(-1)
    np.testing.assert_allclose(scores["loss"], errors, rtol=1e-6)
    np.testing.assert_allclose(scores["probability"], np.exp(log_probabilities().max(-1)), 1e-6)


def test_a_distillation_token_learns_from_the_teacher_and_the_class_token_from_labels():
    model = tiny(distill_token=True, num_classes=7)
    params, images = some_params(model), some_images(3, 8, 12, 3)
    given = batch([0, 1, 6]) | {"image": images, "teacher": LOGITS}
    run = lambda weight: Classification(  # noqa: E731
        Task(distill="hard", distill_weight=weight), model
    ).loss(params, given, jax.random.key(0))[0]
    heads = model.apply({"params": params}, images, method="both_heads")
    for weight in (0, 1):
        logits = np.float64(heads[weight])
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        best = LOGITS.argmax(-1) if weight else [0, 1, 6]
        np.testing.assert_allclose(run(weight), -log_p[np.arange(3), best].mean(), rtol=1e-5)
    assert abs(run(0) - run(1)) > 1e-3
