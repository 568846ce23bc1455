"""Loading weights: permissions, shardings, invalid metadata, and locations."""

import functools
import http.server
import json
import threading

import jax
import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests.support.tiny import assert_same_model, some_params
from vit_jax import create_model, main
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.errors import CheckpointError, ConfigError, VitJaxError
from vit_jax.models import trees
from vit_jax.models.registry import param_shapes
from vit_jax.weights import download, load, writer
from vit_jax.weights.archive import write_npz, write_safetensors
from vit_jax.weights.metadata import WeightsMetadata, from_model

TINY = {"image_size": 8, "num_layers": 1, "hidden_size": 8, "mlp_size": 16, "num_heads": 2}
TINY |= {"num_classes": 3}
HEAD = ("head/kernel", "head/bias")
POSITIONS = "Transformer/posembed_input/pos_embedding"


def tiny(name="vit_b4", **changes):
    return create_model(name, **TINY | changes)


def some_arrays(model, seed=0):
    random = np.random.default_rng(seed)
    return {
        name: random.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in param_shapes(model).items()
    }


def plain_npz(path, model):
    """A file without metadata, as the official code writes it."""
    np.savez(path, **some_arrays(model))
    return path


def with_metadata(path, model, extra=None, **changes):
    """A file with the metadata of this package, and changes to it."""
    metadata = from_model(model).with_defaults(extra or WeightsMetadata()).known_fields() | changes
    plan = writer.plan_export(path.suffix[1:], model, param_shapes(model))
    stored = dict(writer.export_tensors(plan, some_arrays(model)))
    if path.suffix == ".npz":
        write_npz(path, stored.items(), metadata)
    else:
        write_safetensors(path, stored, metadata)
    return path


def flat(path, model, **permissions):
    return trees.flatten(vit_jax.load_params(path, model, **permissions))


def error_of(function, *args, **kwargs):
    with pytest.raises(VitJaxError) as caught:
        function(*args, **kwargs)
    assert caught.value.exit_code in (2, 4)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


# Permissions.


@pytest.mark.parametrize(
    ("changes", "permission", "text"),
    [
        (
            {"num_classes": 5},
            "new_head",
            "head/kernel is (8, 3) in the weights and (8, 5) in the model",
        ),
        ({"num_classes": 0}, "new_head", "head/bias is not in the model"),
        ({"image_size": 16}, "resize", "grid is 2x2 in the weights and 4x4 in the model"),
        ({"pool": "gap"}, "drop_token", "cls is not in the model"),
    ],
    ids=["classes", "features", "grid", "token"],
)
def test_load_params_needs_the_permission_of_each_change(tmp_path, changes, permission, text):
    path, wanted = plain_npz(tmp_path / "x.npz", tiny()), tiny(**changes)
    permissions = {"new_head", "resize", "drop_token"}
    others = dict.fromkeys(permissions - {permission}, True)
    message = error_of(vit_jax.load_params, path, wanted, **others, allow_numerics=True)
    assert text in message
    assert f"({permission}=True permits" in message
    loaded = flat(path, wanted, **{permission: True})
    assert {name: array.shape for name, array in loaded.items()} == param_shapes(wanted)
    stored = some_arrays(tiny())
    touched = {"new_head": HEAD, "resize": (POSITIONS,), "drop_token": (POSITIONS,)}[permission]
    for name in set(loaded) - set(touched):
        np.testing.assert_array_equal(loaded[name], stored[name])
    if permission == "drop_token":
        np.testing.assert_array_equal(loaded[POSITIONS], stored[POSITIONS][:, 1:])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"gelu": "erf"},
            "'tanh' in the weights and 'erf' in the model (create_model(..., gelu='tanh')",
        ),
        ({"norm_eps": 1e-5}, "norm_eps is 1e-06 in the weights and 1e-05 in the model"),
        ({"pixel_stats": "clip"}, "pixel_stats is 'half' in the weights and 'clip' in the model"),
        (
            {"pos_embed_at": "shared"},
            "pos_embed_at is 'stem' in the weights and 'shared' in",
        ),
    ],
    ids=lambda value: str(value)[:12],
)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_load_params_rejects_other_numerics_than_the_files(tmp_path, suffix, changes, text):
    path, other = with_metadata(tmp_path / f"x{suffix}", tiny()), tiny(**changes)
    message = error_of(vit_jax.load_params, path, other)
    assert text in message
    name = next(iter(changes))
    assert f"in the model (create_model(..., {name}=" in message
    assert "), or allow_numerics=True permits it" in message
    with pytest.raises(CheckpointError, match=rf"\(set model.{name}=.*or init.allow_numerics=True"):
        load.plan_adaptation(load.open_weights(path), other, load.Init())
    assert text in error_of(
        vit_jax.load_params, path, other, new_head=True, resize=True, drop_token=True
    )
    assert_same(flat(path, other, allow_numerics=True), some_arrays(tiny()))


def test_numerics_of_plain_npz_are_unknown_and_of_timm_are_known(tmp_path):
    path = plain_npz(tmp_path / "x.npz", tiny())
    other = tiny(gelu="erf", norm_eps=1e-5, pixel_stats="clip", pos_embed_at="shared")
    assert_same(flat(path, other), some_arrays(tiny()))
    path = with_metadata(tmp_path / "timm.safetensors", tiny())
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path)  # Removes the metadata.
    message = error_of(vit_jax.load_params, path, tiny(norm_eps=1e-5))
    assert "gelu is 'erf' in the weights" in message
    assert "norm_eps is 1e-06 in the weights" in message
    assert_same(flat(path, tiny(gelu="erf")), some_arrays(tiny()))


def test_load_params_lists_all_differences_in_one_line(tmp_path):
    path = with_metadata(tmp_path / "x.npz", tiny(pre_logits=True))
    other = tiny(gelu="erf", num_classes=5, image_size=16, mlp_size=12, pool="gap")
    message = error_of(vit_jax.load_params, path, other)
    for text in (
        "gelu is 'tanh' in the weights",
        "head/kernel is (8, 3) in the weights and (8, 5) in the model",
        "Dense_0/kernel is (8, 16) in the weights and (8, 12) in the model",
        "cls is not in the model",
        "pre_logits/kernel is not in the model",
        f"{POSITIONS} is (1, 5, 8) in the weights and (1, 16, 8) in the model",
    ):
        assert text in message


@pytest.mark.parametrize("kind", ["learned_2d", "sincos", "none", "relative", "learned"])
def test_npz_round_trip_of_every_pos_embed(tmp_path, kind):
    model = tiny(pos_embed=kind, image_size=(8, 12))
    path = with_metadata(tmp_path / "x.npz", model)
    assert_same_model(load.load(path).model, model)
    assert_same(flat(path, model), some_arrays(model))
    larger = tiny(pos_embed=kind, image_size=(12, 20))
    if kind in ("sincos", "none"):  # Nothing is learned, nothing resized.
        assert_same(flat(path, larger), some_arrays(model))
    elif kind == "relative":
        assert "relative_embedding is" in error_of(flat, path, larger, resize=True)
    else:
        assert "grid is 2x3 in the weights and 3x5 in the model" in error_of(flat, path, larger)
        shapes = {n: array.shape for n, array in flat(path, larger, resize=True).items()}
        assert shapes == param_shapes(larger)


def test_load_params_takes_fixed_positions_from_the_model(tmp_path):
    model = tiny(pos_embed="sincos")
    path = plain_npz(tmp_path / "bv.npz", model)
    assert_same(flat(path, model), some_arrays(model))
    assert "determine image_size and pos_embed (sincos, rope or none)" in error_of(load.load, path)


def test_load_params_rejects_layer_scale_of_another_width(tmp_path):
    scale = "Transformer/encoderblock_0/LayerScale_1/scale"
    np.savez(tmp_path / "x.npz", **some_arrays(tiny()), **{scale: np.ones(4, np.float32)})
    assert f"{scale} is (4,) and cannot be folded" in error_of(flat, tmp_path / "x.npz", tiny())


# Shardings.


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_load_params_puts_equal_arrays_on_their_shardings(tmp_path, suffix):
    model = tiny(gelu="erf")
    path = with_metadata(tmp_path / f"x{suffix}", model)
    larger = tiny(gelu="erf", image_size=16, num_classes=16)
    shapes = {n: jax.ShapeDtypeStruct(s, np.float32) for n, s in param_shapes(larger).items()}
    mesh = mesh_lib.make_mesh(data=2, fsdp=4)
    places = mesh_lib.tree_shardings(trees.unflatten(shapes), mesh)
    permissions = {"new_head": True, "resize": True}
    found = flat(path, larger, **permissions, shardings=places)
    assert_same(found, flat(path, larger, **permissions))
    for name, place in trees.flatten(places).items():
        assert found[name].sharding == place, name
        assert len(found[name].addressable_shards) == 8
    split = found["Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel"]
    assert split.addressable_shards[0].data.shape == (8, 4)


# Invalid metadata.


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    "damage",
    [
        {"num_heads": 10**9},
        {"num_heads": [2]},
        {"image_size": [10**9, 10**9]},
        {"image_size": 8},
        {"norm_eps": "small"},
        {"gelu": "relu"},
        {"pool": "mean"},
        {"pos_embed": "rotary"},
        {"pos_embed_at": 3},
        {"pixel_stats": {"mean": 0}},
        {"classes": ["cat"]},
        {"classes": ["cat", "dog", 3]},
        {"classes": 3},
        {"crop": "random"},
        {"crop": "center", "crop_fraction": 1e-9},
        {"resample": "lanczos"},
    ],
    ids=str,
)
def test_load_rejects_invalid_metadata_in_one_line(tmp_path, suffix, damage):
    path = with_metadata(tmp_path / f"x{suffix}", tiny(), **damage)
    text = "1 class names for a head of 3" if damage == {"classes": ["cat"]} else "invalid metadata"
    assert text in error_of(load.load, path)


def test_load_rejects_metadata_and_shapes_that_need_much_memory(tmp_path):
    path = tmp_path / "x.npz"
    for kind in ("sincos", "none"):
        with_metadata(path, tiny(pos_embed=kind), image_size=[8192, 8192])
        assert "16384 patches are supported" in error_of(load.load, path)
    with_metadata(path, tiny(pos_embed="learned_2d"), image_size=[8192, 8192])
    assert load.load(path).model.image_size == (8, 8)  # From the shapes.
    with_metadata(path, tiny(pos_embed="relative"), image_size=[256, 512])
    assert "of 8193 tokens; expected at most 4096 tokens" in error_of(load.load, path)
    biases = [f"Transformer/encoderblock_{i}/LayerNorm_0/bias" for i in range(300)]
    np.savez(path, **some_arrays(tiny()) | dict.fromkeys(biases, np.ones(1, "f4")))
    assert "300 layers" in error_of(load.load, path)
    np.savez(path, **some_arrays(tiny()) | {"embedding/kernel": np.ones((1, 1, 1, 9999), "f4")})
    assert "layers have the width 8; expected that of the patch embeddings, 9999" in error_of(
        load.load, path
    )


def test_load_ignores_class_names_without_a_head(tmp_path):
    path = with_metadata(
        tmp_path / "x.npz", tiny(num_classes=0), WeightsMetadata(classes=("cat", "dog"))
    )
    assert load.load(path).classes == ()


# Locations of weights.


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local mirror of the buckets, with its folder."""
    root = tmp_path / "served"
    root.mkdir()
    handler = functools.partial(Silent, directory=root)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{running.server_address[1]}"
        monkeypatch.setenv("VIT_JAX_WEIGHTS_URL", url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield url, root
        running.shutdown()
        thread.join()


def test_load_downloads_a_published_name_and_its_class_names(server):
    _, root = server
    (root / "vit_models" / "gsam").mkdir(parents=True)
    (root / "bit_models").mkdir()
    model = tiny(pool="gap", num_classes=1000)
    plain_npz(root / "vit_models" / "gsam" / "ViT-S_16-gap-norep.npz", model)
    lemmas = [f"lemma {k}" for k in range(1000)]
    (root / "bit_models" / "ilsvrc2012_wordnet_lemmas.txt").write_text("\n".join(lemmas))
    for name in ("gsam/ViT-S_16-gap-norep", "ViT-S_16-gap-norep"):
        loaded = load.load(name)
        assert loaded.model.config.pool == "gap"
        assert loaded.classes == tuple(lemmas)
        assert (loaded.recipe.crop, loaded.recipe.resample) == ("center", "tf_area_uint8")
        assert_same(flat(name, model), some_arrays(model))


def test_load_accepts_urls_of_files_and_folders(server, tmp_path):
    url, root = server
    path = plain_npz(root / "x.npz", tiny())
    for where in (f"{url}/x.npz", f"file://{path}", str(path)):
        assert_same(flat(where, tiny()), some_arrays(tiny()))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "contains no checkpoint; it contains nothing" in error_of(load.load, f"file://{empty}")
    (empty / "notes.txt").write_text("")
    assert "it contains notes.txt" in error_of(load.load, empty)


def test_predict_suggests_a_similar_published_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "no such file, folder or published name. Did you mean ViT-S_16-gap-norep"
    with pytest.raises(CheckpointError, match=text):
        main.run(["predict", "--checkpoint=ViT-S_16-gap-nrep", "x.jpg"])


def test_load_and_inspect_accept_a_timm_folder(tmp_path, capsys):
    path = with_metadata(tmp_path / "model.safetensors", tiny(gelu="erf"))
    arrays = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(arrays, path)
    config = {"architecture": "vit_tiny", "model_args": {"num_heads": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same(trees.flatten(load.load(tmp_path).params()), some_arrays(tiny()))
    assert main.run(["inspect", str(tmp_path)]) == 0
    assert "blocks.0.attn.qkv.weight 24x8 float32" in " ".join(capsys.readouterr().out.split())


def test_inspect_accepts_a_file_without_arrays(tmp_path, capsys):
    np.savez(tmp_path / "empty.npz")
    assert main.run(["inspect", str(tmp_path / "empty.npz")]) == 0
    assert "parameters: 0" in capsys.readouterr().out


def test_inspect_escapes_control_characters(tmp_path, capsys):
    path = tmp_path / "x.npz"
    write_npz(path, some_arrays(tiny()).items(), {"file": "other.npz", "note": "\x1b[2J", "\n": 1})
    assert main.run(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert f"file: {path}" in out


def test_load_rejects_another_number_of_class_names(tmp_path):
    path = plain_npz(tmp_path / "x.npz", tiny())
    with pytest.raises(ConfigError, match="2 class names for a head of 3"):
        load.load(path, ("cat", "dog"))
    loaded = load.load(path, ("cat", "dog", "fox"))
    assert (loaded.classes, loaded.has_class_names) == (("cat", "dog", "fox"), True)
    assert load.load(path).classes == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize("name", ["y.npz", "y.pth", "y"])
@pytest.mark.parametrize("scheme", ["file", "FILE", "File"])
@pytest.mark.parametrize("host", ["", "localhost"])
def test_local_file_that_is_not_readable_is_kept(tmp_path, monkeypatch, name, scheme, host):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / name
    path.write_text("mine")
    message = error_of(load.load, f"{scheme}://{host}{path}")
    assert "deleted" not in message
    assert path.read_text() == "mine"


@pytest.mark.parametrize("argument", ["cache/../../mine.npz", "link.npz", "folder/mine.npz"])
def test_file_outside_the_cache_is_kept_whatever_its_path(tmp_path, monkeypatch, argument):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "vit_jax" / "weights"
    (cache / "cache").mkdir(parents=True)
    mine = tmp_path / "vit_jax" / "mine.npz"
    mine.write_text("mine")
    (cache / "link.npz").symlink_to(mine)
    (cache / "folder").symlink_to(mine.parent)
    path = cache / argument
    for url in (f"file://{path}", f"FILE://{path}"):
        error_of(load.load, url)
    assert mine.read_text() == "mine"


def test_file_in_the_hub_cache_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "hub" / "x.npz"
    path.parent.mkdir()
    path.write_text("not weights")
    monkeypatch.setattr(download, "_from_hub", lambda rest: path)
    assert "not a readable .npz file" in error_of(load.load, "hf://owner/name/x.npz")
    assert path.exists()


def test_unreadable_download_is_deleted(server, tmp_path):
    url, root = server
    (root / "x.npz").write_text("an error page")
    assert "The downloaded file was deleted; try again" in error_of(load.load, f"{url}/x.npz")
    plain_npz(root / "x.npz", tiny())
    assert load.load(f"{url}/x.npz").model.num_classes == 3


def test_load_params_resizes_by_a_rule_of_the_user(tmp_path):
    model, larger = (tiny(image_size=size, num_classes=0) for size in ((8, 12), (16, 12)))
    params = some_params(model)
    vit_jax.save_params(tmp_path / "x.npz", model, params)
    options = {"resize": True, "resize_rule": "tests.support.resize_cases:nearest"}
    new = vit_jax.load_params(tmp_path / "x.npz", larger, **options)
    old, new = (tree["Transformer"]["posembed_input"]["pos_embedding"][0] for tree in (params, new))
    np.testing.assert_array_equal(new[1:].reshape(4, 3, -1)[::2], old[1:].reshape(2, 3, -1))
    options["resize_rule"] = "tests.support.resize_cases:transposed"
    with pytest.raises(ConfigError, match=r"resize rule transposed returns an array of \(2, 4\)"):
        vit_jax.load_params(tmp_path / "x.npz", larger, **options)
