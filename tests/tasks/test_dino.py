"""Self-distillation: targets of the teacher, loss of the student, and rules of a config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny import some_images, some_params, tiny
from vit_jax.config import base_config, check
from vit_jax.config.schema import Task
from vit_jax.errors import ConfigError
from vit_jax.models.dino_vit import DinoViT, HeadShape
from vit_jax.tasks import dino
from vit_jax.tasks.dino import SelfDistillation

B, K, N, S = 3, 7, 6, 3
HEAD = HeadShape(num_prototypes=K, num_layers=2, hidden_size=6, bottleneck=5, has_scale=True)
MASKS = np.zeros((B, 2, N), bool)
MASKS[0, 0, [1, 4]] = MASKS[2, 1, [0, 2, 5]] = True
KEY = jax.random.key(0)


def softmax(x):
    x = np.exp(np.float64(x) - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def make(patches=True, **fields):
    vit = tiny(num_classes=0, gelu="erf")
    options = {"num_masked": S} if patches else {}
    model = DinoViT.of(vit, HEAD, **options, local_crops=2, local_size=(4, 8))
    section = Task(name="dino", prototypes=K, patch_weight=float(patches), **fields)
    return SelfDistillation(section, model)


def some_batch(task):
    batch = {
        "image": some_images(B, 2, 8, 12, 3),
        "local": some_images(B, 2, 4, 8, 3, seed=1),
        "mask": np.float32([1, 1, 1]),
    }
    return batch | ({"is_masked": MASKS} if task.section.patch_weight else {})


def logits_of(task, params, name, tokens):
    return np.array(task.model.apply({"params": params}, tokens, method=f"{name}_logits"))


def tokens_of(task, params, images, is_masked=None):
    return np.array(task.model.apply({"params": params}, images, is_masked, method="tokens"))


def test_targets_are_centred_teacher_logits_of_unmasked_images():
    task = make()
    params, batch = some_params(task.model), some_batch(task)
    centres = {"class_centre": some_images(K, seed=4), "patch_centre": some_images(K, seed=5)}
    columns, state, metrics = task.teacher_targets(params, centres, batch, jnp.int32(0), KEY)
    for view in range(2):
        z = tokens_of(task, params, batch["image"][:, view])
        expected = softmax(
            (logits_of(task, params, "class", z[:, 0]) - centres["class_centre"]) / 0.04
        )
        np.testing.assert_allclose(columns["class_targets"][:, view], expected, atol=1e-4)
    z = tokens_of(task, params, batch["image"][:, 0])[0, 1:]
    logits = logits_of(task, params, "patch", z[[1, 4]])
    expected = softmax((logits - centres["patch_centre"]) / 0.04)
    np.testing.assert_allclose(columns["patch_targets"][0, 0, :2], expected, atol=1e-4)
    np.testing.assert_array_equal(columns["patch_index"][0, 0, :2], [1, 4])
    np.testing.assert_allclose(columns["patch_weights"][0, 0], [0.5, 0.5, 0])
    np.testing.assert_array_equal(columns["patch_weights"][0, 1], np.zeros(3))
    np.testing.assert_allclose(metrics["center_norm"], np.linalg.norm(state["class_centre"]), 1e-5)
    assert set(metrics) == {"teacher_entropy", "mean_entropy", "prototypes_used", "center_norm"}


def test_centres_move_by_the_mean_logits_of_the_rows_that_count():
    task = make()
    params, batch = some_params(task.model), some_batch(task) | {"mask": np.float32([1, 0, 1])}
    centres = task.init_task_state()
    _, state, _ = task.teacher_targets(params, centres, batch, jnp.int32(0), KEY)
    z = [tokens_of(task, params, batch["image"][:, view])[[0, 2]] for view in range(2)]
    mean = np.mean([logits_of(task, params, "class", each[:, 0]) for each in z], axis=(0, 1))
    np.testing.assert_allclose(state["class_centre"], 0.1 * mean, rtol=1e-4, atol=1e-5)
    masked = np.concatenate([z[0][0, 1:][[1, 4]], z[1][1, 1:][[0, 2, 5]]])
    mean = logits_of(task, params, "patch", masked).mean(0)
    np.testing.assert_allclose(state["patch_centre"], 0.1 * mean, rtol=1e-4, atol=1e-5)


def test_sinkhorn_has_no_state_and_uses_prototypes_more_equally_than_a_softmax():
    task = make(patches=False, centering="sinkhorn")
    assert task.init_task_state() == {}
    params, batch = some_params(task.model), some_batch(task)
    columns, state, _ = task.teacher_targets(params, {}, batch, jnp.int32(0), KEY)
    assert state == {}
    assigned = np.array(columns["class_targets"]).reshape(-1, K)
    np.testing.assert_allclose(assigned.sum(axis=1), np.ones(2 * B), rtol=1e-5)


def test_the_loss_is_the_sum_of_its_terms_over_views_and_masked_patches():
    task = make(koleo_weight=0.5)
    params, batch = some_params(task.model), some_batch(task)
    teacher = some_params(task.model, seed=2)
    columns, _, _ = task.teacher_targets(teacher, task.init_task_state(), batch, jnp.int32(0), KEY)
    loss, metrics = task.loss(params, batch | columns, KEY)
    z = [tokens_of(task, params, batch["image"][:, v], MASKS[:, v]) for v in range(2)]
    views = [each[:, 0] for each in z]
    local = task.model.for_local_crops
    for v in range(2):
        images = batch["local"][:, v]
        views.append(np.array(local.apply({"params": params}, images, method="tokens"))[:, 0])
    log_p = [np.log(softmax(logits_of(task, params, "class", view) / 0.1)) for view in views]
    q = np.float64(columns["class_targets"])
    pairs = [(i, v) for i in range(2) for v in range(4) if i != v]
    terms = [-(q[:, i] * log_p[v]).sum(-1).mean() for i, v in pairs]
    np.testing.assert_allclose(metrics["class_loss"], np.mean(terms), rtol=1e-4)
    patch_terms = []
    for image, view in ((0, 0), (2, 1)):
        places = np.flatnonzero(MASKS[image, view])
        logits = logits_of(task, params, "patch", z[view][image, 1:][places])
        targets = np.float64(columns["patch_targets"][image, view, : len(places)])
        patch_terms.append(-(targets * np.log(softmax(logits / 0.1))).sum(-1).mean())
    np.testing.assert_allclose(metrics["patch_loss"], sum(patch_terms) / (2 * B), rtol=1e-4)
    total = metrics["class_loss"] + metrics["patch_loss"] + 0.5 * metrics["koleo"]
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    entropy = -np.sum(q * np.log(np.maximum(q, 1e-30)), axis=-1).mean()
    np.testing.assert_allclose(metrics["kl"], np.mean(terms) - entropy, rtol=1e-3, atol=1e-5)


def test_rows_that_do_not_count_change_no_loss_and_no_target():
    task = make(koleo_weight=0.1)
    params, batch = some_params(task.model), some_batch(task) | {"mask": np.float32([1, 0, 1])}
    other = batch | {"image": batch["image"].copy(), "local": batch["local"].copy()}
    other["image"][1] = other["local"][1] = 0.25

    def run(batch):
        state = task.init_task_state()
        columns, state, metrics = task.teacher_targets(params, state, batch, jnp.int32(0), KEY)
        return task.loss(params, batch | columns, KEY), state, metrics

    for a, b in zip(jax.tree.leaves(run(batch)), jax.tree.leaves(run(other))):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_temperature_of_the_teacher_rises_linearly_and_stays():
    section = Task(end_teacher_temperature=0.07, teacher_warmup_steps=10)
    found = [float(dino.teacher_temperature(section, step)) for step in (0, 5, 10, 99)]
    np.testing.assert_allclose(found, [0.04, 0.055, 0.07, 0.07], rtol=1e-5)
    assert dino.teacher_temperature(Task(), 7) == 0.04


def test_masked_places_are_those_of_the_mask_and_padding_has_weight_0():
    index, weights = dino.masked_places(jnp.array(MASKS), 2)
    np.testing.assert_array_equal(index[0, 0], [1, 4])
    np.testing.assert_array_equal(index[2, 1], [0, 2])  # The third one is left out.
    np.testing.assert_allclose(weights[2, 1], [0.5, 0.5])
    np.testing.assert_array_equal(weights[1], np.zeros((2, 2)))
    assert index.dtype == jnp.int32


def checked(**fields):
    config = base_config()
    config.data.update(source="fake", num_classes=3, num_examples=8, image_size=32)
    config.task.name = "dino"
    config.optimizer.ema = 0.99
    config.update(steps=1)
    config.model.update(name="vit_ti16", patch=8)
    for name, value in fields.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    return check(config)[""]


def test_the_model_of_a_config_has_the_sizes_of_its_section():
    config = checked(
        task__patch_weight=1.0,
        task__patch_prototypes=9,
        task__prototypes=5,
        task__normalize_last_layer=False,
        data__local_crops=3,
        data__local_size=16,
    )
    model = SelfDistillation.build_model(config, 10)
    assert model.head_shape == HeadShape(5, 3, 2048, 256, has_scale=True)
    assert (model.num_masked, model.patch_head_shape.num_prototypes) == (8, 9)  # Of 16 patches.
    assert (model.local_crops, model.for_local_crops.grid) == (3, (2, 2))
    recipe = SelfDistillation.train_recipe(config, model)
    shapes = {name: shape for name, (shape, _) in recipe.columns.items()}
    assert shapes == {"image": (2, 32, 32, 3), "local": (3, 16, 16, 3), "is_masked": (2, 16)}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"optimizer__ema": None}, "the averaged weights are the teacher"),
        ({"model__fc_norm": True}, "model.fc_norm is True; it must be False"),
        ({"model__head_std": 0.01}, "model.head_std is 0.01; it must be 0.0"),
        (
            {"model__head_norm": True, "optimizer__freeze": "all but head"},
            "model.head_norm is True; it must be False",
        ),
        ({"model__pool": "map"}, "model.pool is 'map'; it must be 'token' or 'gap' or 'token_gap'"),
        ({"model__pool": "gap"}, "set model.class_token=True"),
        ({"model__pos_embed": "relative"}, "model.pos_embed is 'relative'; it must be 'learned'"),
        ({"model__name": "r_ti16", "model__patch": None}, "needs a model that embeds patches"),
        ({"data__mixup": 0.5}, "data.mixup is 0.5; it must be 0.0"),
        ({"data__local_crops": 2, "data__local_size": 12}, "local_size is 12; it must be divisib"),
        (
            {"task__patch_weight": 1.0, "task__mask_ratios": (0.01, 0.02)},
            "which masks 0 of 16 patches",
        ),
        (
            {"task__patch_weight": 1.0, "task__mask_ratios": (0.5, 0.2)},
            "expected two increasing numbers",
        ),
        ({"select": "best", "eval_every": 5}, "select is 'best'; it must be 'last'"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_self_distillation_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        SelfDistillation.build_model(checked(**fields), 0)
