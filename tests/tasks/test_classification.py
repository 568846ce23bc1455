"""The loss of a training batch and the scores of an evaluated one, against numpy."""

import jax
import numpy as np
import pytest

from vit_jax import create_model, trees
from vit_jax.models.registry import param_shapes
from vit_jax.tasks.classification import make_loss, make_scorer

LOGITS = np.array(
    [[3, 1, 0, 2, -1, -2, -3], [0, 5, 4, 3, 2, 1, -1], [1, 2, 3, 4, 5, 6, 7]], np.float32
)


class Written:
    """A model whose logits are its images; it says with what it was called."""

    def __init__(self):
        self.calls = []

    def apply(self, variables, images, **kwargs):
        self.calls.append((variables, kwargs))
        return images


def batch(labels, mask=(1, 1, 1)):
    return {"image": LOGITS, "label": np.array(labels), "mask": np.array(mask, np.float32)}


def log_shares():
    return LOGITS - np.log(np.exp(np.float64(LOGITS)).sum(-1, keepdims=True))


def test_the_loss_is_the_mean_cross_entropy_of_the_unmasked_examples():
    loss, metrics = make_loss(Written())({}, batch([0, 2, 6], mask=[1, 1, 0]), jax.random.key(0))
    expected = -(log_shares()[0, 0] + log_shares()[1, 2]) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert metrics == {"top1": 0.5}  # The third would have been right.


def test_training_asks_for_dropout_with_the_given_key():
    model, key = Written(), jax.random.key(3)
    make_loss(model)({"a": 1}, batch([0, 1, 2]), key)
    ((variables, kwargs),) = model.calls
    assert variables == {"params": {"a": 1}}
    assert kwargs == {"train": True, "rngs": {"dropout": key}}


def test_scores_are_for_single_examples_and_without_dropout():
    model = Written()
    scores = make_scorer(model)({}, batch([0, 6, 2]))
    assert model.calls == [({"params": {}}, {})]
    shapes = {name: array.shape for name, array in scores.items()}
    assert shapes == {"loss": (3,), "probability": (3,), "best": (3, 5)}
    np.testing.assert_array_equal(scores["best"][:, 0], [0, 1, 6])
    in_five = [label in best for label, best in zip([0, 6, 2], np.array(scores["best"]))]
    assert in_five == [True, False, True]
    np.testing.assert_allclose(scores["loss"], -log_shares()[[0, 1, 2], [0, 6, 2]], rtol=1e-6)
    np.testing.assert_allclose(scores["probability"], np.exp(log_shares().max(-1)), rtol=1e-6)


@pytest.mark.parametrize(("label", "hit"), [(6, True), (2, True), (1, False), (0, False)])
def test_top5_ends_after_the_fifth_best(label, hit):
    best = np.array(make_scorer(Written())({}, batch([0, 0, label]))["best"])
    assert (label in best[2]) == hit


def test_with_fewer_than_five_classes_every_label_is_among_the_best():
    few = batch([0, 1, 2]) | {"image": LOGITS[:, :3]}
    best = np.array(make_scorer(Written())({}, few)["best"])
    np.testing.assert_array_equal(np.sort(best, axis=1), [[0, 1, 2]] * 3)


def test_a_real_models_loss_has_dropout_and_its_score_has_none():
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
    loss = jax.jit(lambda key: make_loss(model)(params, real, key)[0])
    assert loss(jax.random.key(0)) != loss(jax.random.key(1))
    assert loss(jax.random.key(0)) == loss(jax.random.key(0))
    scores = jax.jit(make_scorer(model))(params, real)
    # Equal images get equal scores, as no dropout tells them apart.
    assert len(set(map(float, scores["probability"]))) == 1


def test_mixed_images_are_learnt_by_their_shares_and_counted_by_their_label():
    targets = np.zeros((3, 7), np.float32)
    targets[:, 1], targets[:, 6] = 0.75, 0.25
    mixed = batch([0, 1, 1]) | {"targets": targets}
    loss, metrics = make_loss(Written())({}, mixed, jax.random.key(0))
    np.testing.assert_allclose(loss, -(targets * log_shares()).sum(-1).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["top1"], 2 / 3, rtol=1e-6)


def test_smoothed_labels_give_every_class_a_share():
    loss, _ = make_loss(Written(), label_smoothing=0.1)({}, batch([0, 1, 6]), jax.random.key(0))
    smooth = np.eye(7)[[0, 1, 6]] * 0.9 + 0.1 / 7
    np.testing.assert_allclose(loss, -(smooth * log_shares()).sum(-1).mean(), rtol=1e-6)


@pytest.mark.parametrize("distill", ["soft", "hard"])
def test_a_teacher_has_its_share_of_the_loss(distill):
    teacher = LOGITS[:, ::-1]
    given = batch([0, 1, 6]) | {"teacher": teacher}
    options = {"distill": distill, "distill_weight": 0.25, "temperature": 2.0}
    loss, _ = make_loss(Written(), **options)({}, given, jax.random.key(0))
    plain, _ = make_loss(Written())({}, batch([0, 1, 6]), jax.random.key(0))
    if distill == "hard":
        taught = -log_shares()[np.arange(3), teacher.argmax(-1)].mean()
    else:
        p, q = (np.exp(x / 2) / np.exp(x / 2).sum(-1, keepdims=True) for x in (teacher, LOGITS))
        taught = 4 * (p * np.log(p / q)).sum(-1).mean()
    np.testing.assert_allclose(loss, 0.75 * plain + 0.25 * taught, rtol=1e-5)


@pytest.mark.parametrize("name", ["sigmoid", "binary"])
def test_a_run_is_judged_by_the_loss_it_learns_from(name):
    learnt, _ = make_loss(Written(), loss=name)({}, batch([0, 1, 6]), jax.random.key(0))
    judged = make_scorer(Written(), loss=name)({}, batch([0, 1, 6]))["loss"]
    np.testing.assert_allclose(learnt, judged.mean(), rtol=1e-6)
    p = 1 / (1 + np.exp(-np.float64(LOGITS)))
    each = -np.where(np.eye(7)[[0, 1, 6]] == 1, np.log(p), np.log(1 - p))
    expected = each.sum(-1) if name == "sigmoid" else each.mean(-1)
    np.testing.assert_allclose(judged, expected, rtol=1e-5)
