"""Features of every layer, from the model's own definition of them."""

import dataclasses

import jax
import numpy as np
import pytest

from vit_jax import create_model
from vit_jax.errors import ConfigError
from vit_jax.evaluation.features import make_extractor
from vit_jax.models.mae_vit import MaeViT
from vit_jax.models.masked_vit import MaskedViT
from vit_jax.models.vit import encoder_of

SHAPE = {"patch": 4, "num_layers": 3, "hidden_size": 16, "mlp_size": 32, "num_heads": 2}
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)


def vit(**options):
    options = SHAPE | {"num_classes": 5, "image_size": (8, 12)} | options
    model = create_model("vit_ti16", **options)
    params = jax.jit(model.init)(jax.random.key(0), IMAGES)["params"]
    return model, jax.tree.map(lambda p: np.array(p) + 0.01, params)  # No zeros and ones left.


def small_mae(vit):
    return MaeViT.of(vit, 3, num_layers=1, hidden_size=8, num_heads=2)


def features(model, params, layer: str) -> np.ndarray:
    extract = jax.jit(make_extractor(model, layer))
    return np.array(extract(params, {"image": IMAGES})["features"])


def block_by_block(model, params) -> list[np.ndarray]:
    """The tokens after every layer: those of models with fewer layers, not normalised."""
    found = []
    for count in range(1, SHAPE["num_layers"] + 1):
        fewer = model.clone(config=dataclasses.replace(model.config, num_layers=count))
        own = params | {
            "Transformer": {
                name: value
                for name, value in params["Transformer"].items()
                if not name.startswith("encoderblock") or int(name[-1]) < count
            }
        }
        _, state = fewer.apply({"params": own}, IMAGES, capture_intermediates=True)
        (z,) = state["intermediates"]["Transformer"][f"encoderblock_{count - 1}"]["__call__"]
        found.append(np.array(z))
    return found


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.stress
def test_layers_are_those_of_the_model(scan):
    model, params = vit()
    blocks = block_by_block(model, params)
    norm = params["Transformer"]["encoder_norm"]
    z = blocks[-1]
    centred = z - z.mean(-1, keepdims=True)
    z = centred / np.sqrt(z.var(-1, keepdims=True) + 1e-6) * norm["scale"] + norm["bias"]
    if scan:
        model = model.clone(config=dataclasses.replace(model.config, scan=True))
    for i, block in enumerate(blocks):
        np.testing.assert_allclose(features(model, params, f"block_{i}"), block, atol=1e-5)
    np.testing.assert_allclose(features(model, params, "tokens"), z, atol=1e-5)
    np.testing.assert_allclose(features(model, params, "token"), z[:, 0], atol=1e-5)
    np.testing.assert_allclose(features(model, params, "mean"), z[:, 1:].mean(1), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"pre_logits": True}, {"pool": "gap"}, {"pool": "map"}])
@pytest.mark.stress
def test_pre_logits_times_the_head_are_the_logits(options):
    model, params = vit(**options)
    head = params["head"]
    logits = features(model, params, "pre_logits") @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, model.apply({"params": params}, IMAGES), atol=1e-5)


@pytest.mark.stress
def test_a_resnet_gives_what_its_head_is_given():
    model = create_model("bit_r26x1", num_classes=5, image_size=32)
    images = np.zeros((2, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    found = jax.jit(make_extractor(model))(params, {"image": images})["features"]
    assert found.shape == (2, 2048)
    with pytest.raises(ConfigError, match="a ResNet has pre_logits only"):
        make_extractor(model, "token")


ENCODERS = {
    "dinov3": {"pos_embed": "rope", "mlp": "swiglu", "registers": 2, "qkv_bias": "qv"},
    "eva02": {
        "pos_embed": "learned_rope",
        "rope": "eva02",
        "mlp": "swiglu",
        "pool": "gap",
        "class_token": True,
        "fc_norm": True,
    },
    "deit": {"distill_token": True},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_features_of_encoders_are_those_of_their_steps(name):
    model, params = vit(num_layers=2, **{"hidden_size": 16} | ENCODERS[name])
    z = model.apply({"params": params}, IMAGES, method=lambda vit, x: vit.encode(vit.embed(x)))
    num_prefix_tokens = {"dinov3": 3, "eva02": 1, "deit": 2}[name]
    expected = {
        "tokens": z,
        "token": z[:, 0],
        "mean": z[:, num_prefix_tokens:].mean(axis=1),
        "pre_logits": model.apply({"params": params}, z, method="pool"),
    }
    for layer, array in expected.items():
        np.testing.assert_allclose(features(model, params, layer), array, atol=1e-5)
    if name == "eva02":  # Its last LayerNorm is applied after pooling.
        np.testing.assert_array_equal(
            features(model, params, "tokens"), features(model, params, "block_1")
        )


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("block_3", "the last is block_2"),
        ("blocks", "choose from pre_logits, token"),
        ("token", "a model with pool='gap' has no class token"),
    ],
)
def test_a_layer_that_is_not_there_is_told(layer, words):
    model, _ = vit(pool="gap")
    with pytest.raises(ConfigError, match=words):
        make_extractor(model, layer)


@pytest.mark.parametrize("of", [lambda vit: MaskedViT.of(vit, 7), small_mae])
def test_features_of_a_task_without_classes_are_those_of_its_encoder(of):
    model, params = vit(num_layers=1, num_classes=0)
    task_model = of(model)
    assert encoder_of(task_model) == model
    shapes = jax.eval_shape(task_model.init, jax.random.key(1), IMAGES)["params"]
    own = {name: jax.tree.map(lambda p: np.ones(p.shape), part) for name, part in shapes.items()}
    assert set(own) > set(params)
    found = features(task_model, own | params, "pre_logits")
    np.testing.assert_allclose(found, model.apply({"params": params}, IMAGES), atol=1e-6)
