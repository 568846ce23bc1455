"""AlgoPerf's ImageNet-ViT against numpy, written from a description of its rules.

The rules are those of mlcommons/algorithmic-efficiency; the update rule is compared in
tests/training/test_optimizer_update_rules.py, RandAugment in
tests/data/test_randaugment_algoperf.py, and the random box in tests/data/test_crops.py.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from tests.support.runs import ROOT
from vit_jax import config as config_lib
from vit_jax.config.schema import Config
from vit_jax.data.mixup import make_mixer
from vit_jax.data.preprocess import EvalRecipe
from vit_jax.models import trees
from vit_jax.models.pixel_stats import normalize
from vit_jax.models.position import sincos
from vit_jax.models.registry import make_init, param_shapes
from vit_jax.tasks.classification import Classification
from vit_jax.training.schedules import make_hyperparams

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def config_of(arg: str = "") -> Config:
    return config_lib.check(config_lib.load(f"{ROOT}/configs/algoperf.py{arg}"))[""]


CONFIG = config_of()


def model_of(config: Config, **fields):
    model = dataclasses.replace(config.model, **fields)
    return Classification.build_model(dataclasses.replace(config, model=model), num_classes=1000)


def test_model_has_the_parameters_of_the_workload():
    sizes = {name: math.prod(shape) for name, shape in param_shapes(model_of(CONFIG)).items()}
    assert sum(sizes.values()) == 22_122_472
    parts = {"embedding": 295_296, "pre_logits": 147_840, "head": 385_000}
    for part, count in parts.items():
        assert sum(size for name, size in sizes.items() if name.startswith(part)) == count
    assert sum(size for name, size in sizes.items() if "encoder_norm" in name) == 768
    assert sum(size for name, size in sizes.items() if "encoderblock_3/" in name) == 1_774_464


def test_map_variant_has_an_attention_pooling_of_the_same_width():
    names = param_shapes(model_of(config_of(":pool=map")))
    assert names["MAPHead_0/probe"] == (1, 1, 384)
    assert names["MAPHead_0/MlpBlock_0/Dense_0/kernel"] == (384, 1536)
    assert names["MAPHead_0/MultiHeadDotProductAttention_0/query/kernel"] == (384, 6, 64)
    assert "pre_logits/kernel" in names


@pytest.fixture(scope="module")
def initial() -> dict:
    """Initial parameters of one layer at full width, by name."""
    init = jax.jit(make_init(model_of(CONFIG, num_layers=1)))
    return {
        name.removeprefix("Transformer/encoderblock_0/"): np.asarray(array)
        for name, array in trees.flatten(init(jax.random.key(0, impl="rbg"))).items()
    }


def test_initial_values_have_the_distributions_of_the_workload(initial):
    uniform = {  # Xavier: sum of both fans of the flattened matrix.
        **{f"MultiHeadDotProductAttention_0/{n}": 768 for n in ("query", "key", "value", "out")},
        "MlpBlock_0/Dense_0": 384 + 1536,
        "MlpBlock_0/Dense_1": 384 + 1536,
    }
    for name, fans in uniform.items():
        kernel, bound = initial.pop(f"{name}/kernel"), math.sqrt(6 / fans)
        assert np.abs(kernel).max() <= bound
        assert kernel.std() == pytest.approx(bound / math.sqrt(3), rel=0.01), name
    for name, fan_in in {"embedding": 16 * 16 * 3, "pre_logits": 384}.items():  # LeCun normal.
        kernel = initial.pop(f"{name}/kernel")
        assert kernel.std() == pytest.approx(math.sqrt(1 / fan_in), rel=0.01), name
        assert np.abs(kernel).max() == pytest.approx(2 / 0.8796 / math.sqrt(fan_in), rel=0.01)
    for name in ("MlpBlock_0/Dense_0/bias", "MlpBlock_0/Dense_1/bias"):
        assert initial.pop(name).std() == pytest.approx(1e-6, rel=0.1)
    for name, array in initial.items():  # The head, other biases, and LayerNorms.
        assert (array == name.endswith("scale")).all(), name


def loss_of(model, params, batch: dict):
    labels = np.zeros(len(batch["image"]), int)  # Of the metric alone.
    batch = batch | {"label": labels, "mask": np.ones(len(labels), np.float32)}
    return Classification(CONFIG.task, model).loss(params, batch, jax.random.key(0))[0]


def test_first_loss_is_ln_1000_and_only_the_head_has_gradients():
    tiny = {"num_layers": 1, "hidden_size": 32, "mlp_size": 64, "num_heads": 2, "patch": 112}
    model, random = model_of(CONFIG, **tiny), np.random.default_rng(0)
    params = jax.jit(make_init(model))(jax.random.key(0, impl="rbg"))
    images = random.uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    targets = 0.7 * np.eye(1000, dtype=np.float32)[:2] + 0.3 * np.eye(1000, dtype=np.float32)[1::-1]
    batch = {"image": images, "targets": targets}
    loss, gradients = jax.jit(jax.value_and_grad(lambda p: loss_of(model, p, batch)))(params)
    assert loss == pytest.approx(6.907755, abs=5e-6)
    for name, gradient in trees.flatten(gradients).items():
        assert np.any(gradient) == name.startswith("head/"), name


def test_loss_is_the_mean_cross_entropy_of_smoothed_mixed_labels():
    random = np.random.default_rng(0)
    logits = random.normal(size=(6, 1000)).astype(np.float32) * 3
    labels, one_hot = np.array([5, 900, 5, 17, 0, 999]), np.eye(1000)

    class Fixed:
        def apply(self, *args, **kwargs):
            return jnp.asarray(logits)

    images = np.arange(6, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 2, 3), np.float32)
    mixed = make_mixer(CONFIG.data, 1000)({"image": images, "label": labels}, jax.random.key(1))
    ratio = np.asarray(mixed["targets"])[1, 900]
    assert 0.01 < ratio < 0.99
    np.testing.assert_allclose(
        mixed["image"], ratio * images + (1 - ratio) * np.roll(images, 1, axis=0), atol=1e-5
    )
    y = ratio * one_hot[labels] + (1 - ratio) * one_hot[np.roll(labels, 1)]
    y = y * (1 - 0.2) + 0.2 / 1000
    log_p = logits - np.log(np.exp(logits.astype(float)).sum(-1, keepdims=True))
    expected = -(y * log_p).sum(-1).mean()
    np.testing.assert_allclose(loss_of(Fixed(), {}, mixed), expected, rtol=1e-6)


def test_lambda_is_a_ratio_of_gammas_and_is_not_folded():
    batch = {"image": np.ones((2, 1, 1, 3), np.float32), "label": np.array([0, 1])}
    mixer, keys = make_mixer(CONFIG.data, 2), jax.random.split(jax.random.key(0), 1500)
    ratios = np.asarray(jax.jit(jax.vmap(lambda key: mixer(batch, key)["targets"][0, 0]))(keys))
    gammas = np.random.default_rng(0).gamma(0.2, size=(2, 100_000))
    theirs = gammas[0] / gammas.sum(0)
    assert scipy.stats.ks_2samp(ratios, theirs).pvalue > 0.01
    assert (ratios < 0.5).mean() > 0.45


def test_learning_rate_is_that_of_the_published_runs():
    rate = make_hyperparams(CONFIG.optimizer, CONFIG.steps)
    assert (CONFIG.steps, CONFIG.optimizer.warmup_steps) == (186_666, 9_333)
    assert rate(0)["lr"] == 0  # Of the first update.
    published = {  # Step -> 1e4 times the rate.
        **{1_000: 0.905, 2_000: 1.810, 5_000: 4.524, 10_000: 8.445, 20_000: 8.370},
        **{40_000: 7.837, 80_000: 5.546, 120_000: 2.618, 150_000: 0.860, 167_000: 0.254},
    }
    for step, value in published.items():
        assert rate(step)["lr"] * 1e4 == pytest.approx(value, abs=5.1e-4), step
    assert rate(9_333)["lr"] == np.float32(8.445074561975979e-4)
    assert rate(186_665)["lr"] < 1e-12
    v06 = config_of(":steps=167999")
    assert v06.optimizer.warmup_steps == 8_399
    assert make_hyperparams(v06.optimizer, v06.steps)(150_000)["lr"] == pytest.approx(
        2.6e-5, abs=5e-7
    )


def test_optimizer_has_the_published_point_and_decays_every_parameter():
    rule = CONFIG.optimizer
    assert (rule.name, rule.lr) == ("nadamw_algoperf", 8.445074561975979e-4)
    assert rule.kwargs == {"b1": 0.88957581535, "b2": 0.9978504782314613}  # eps: 1e-8.
    assert (rule.weight_decay, rule.decay_factors) == (0.08135402759553023, ())
    assert (rule.clip_norm, rule.ema, CONFIG.model.dropout, CONFIG.model.drop_path) == (
        *(None, None),
        *(0, 0),
    )
    assert (CONFIG.batch_size, CONFIG.accumulate, CONFIG.model.dtype) == (1024, 1, "float32")


def keys_cubic(old: int, new: int) -> np.ndarray:
    """Matrix new x old of a bicubic resize without antialiasing, with weights renormalised."""
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            x = abs(centre - j)
            weight = 1.5 * x**3 - 2.5 * x**2 + 1
            if x > 1:
                weight = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
            if 0 <= j < old:
                matrix[i, j] = weight
    return matrix / matrix.sum(1, keepdims=True)


@pytest.mark.parametrize("shape", [(300, 281), (261, 400), (90, 120)])
def test_evaluation_cuts_the_centre_resizes_and_normalises(shape):
    image = np.random.default_rng(0).integers(0, 2, (*shape, 3)).astype(np.uint8) * 255
    side = int(224 / 256 * min(shape))
    top, left = ((part - side + 1) // 2 for part in shape)
    square, weights = image[top : top + side, left : left + side], keys_cubic(side, 224)
    expected = np.einsum("yi,xj,ijc->yxc", weights, weights, square.astype(float), optimize=True)
    assert expected.min() < -20  # Not clipped.
    assert expected.max() > 275
    recipe = EvalRecipe.from_data(CONFIG.data, (224, 224))
    found = normalize(jnp.asarray(recipe(image))[None], CONFIG.model.pixel_stats)[0]
    # TensorFlow rounds distances to 1/1024 of a pixel: by up to a grey level at an edge.
    np.testing.assert_allclose(
        found, (expected - 255 * MEAN) / (255 * DEVIATION), atol=1 / 255 / DEVIATION.min()
    )


def test_positions_have_95_frequencies_above_the_lowest():
    x, y = 3, 11
    frequencies = 10_000.0 ** (-np.arange(96) / 95)
    expected = [wave(v * frequencies) for v in (x, y) for wave in (np.sin, np.cos)]
    found = sincos((14, 14), 384)[y * 14 + x]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-6)
