"""WHERE -> weights: what is permitted, what is refused, and where each array is put."""

import functools
import http.server
import json
import threading

import jax
import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from vit_jax import create_model, main, trees
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.errors import CheckpointError, ConfigError, VitJaxError
from vit_jax.models.registry import param_shapes
from vit_jax.weights import load, writer
from vit_jax.weights.archive import write_npz, write_safetensors
from vit_jax.weights.metadata import Facts, of_model, to_metadata

TINY = {"image_size": 8, "num_layers": 1, "hidden_size": 8, "mlp_size": 16, "num_heads": 2}
TINY |= {"num_classes": 3}
HEAD = ("head/kernel", "head/bias")
PLACE = "Transformer/posembed_input/pos_embedding"


def tiny(name="vit_b4", **changes):
    return create_model(name, **TINY | changes)


def some_arrays(model, seed=0):
    random = np.random.default_rng(seed)
    return {
        name: random.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in param_shapes(model).items()
    }


def plain_npz(path, model):
    """As the official code writes: nothing but arrays."""
    np.savez(path, **some_arrays(model))
    return path


def told(path, model, said=Facts(), **changes):  # noqa: B008
    """A file of ours, which tells what its model is."""
    metadata = to_metadata(of_model(model).over(said)) | changes
    plan = writer.plan_export(path.suffix[1:], model, param_shapes(model))
    stored = dict(writer.tensors(plan, some_arrays(model)))
    if path.suffix == ".npz":
        write_npz(path, stored.items(), metadata)
    else:
        write_safetensors(path, stored, metadata)
    return path


def flat(path, model, **permissions):
    return trees.flatten(vit_jax.load_params(path, model, **permissions))


def refused(act, *args, **kwargs):
    with pytest.raises(VitJaxError) as caught:
        act(*args, **kwargs)
    assert caught.value.exit_code in (2, 4)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


# Permissions.


@pytest.mark.parametrize(
    ("changes", "permission", "words"),
    [
        ({"num_classes": 5}, "new_head", "head/kernel is (8, 3) there, (8, 5) here"),
        ({"num_classes": 0}, "new_head", "head/bias has no place here"),
        ({"image_size": 16}, "resize", "position grid 2x2 there, 4x4 here"),
        ({"pool": "gap"}, "drop_token", "cls has no place here"),
    ],
    ids=["classes", "features", "grid", "token"],
)
def test_each_change_needs_its_own_permission(tmp_path, changes, permission, words):
    path, wanted = plain_npz(tmp_path / "x.npz", tiny()), tiny(**changes)
    permissions = {"new_head", "resize", "drop_token"}
    others = dict.fromkeys(permissions - {permission}, True)
    message = refused(vit_jax.load_params, path, wanted, **others, allow_numerics=True)
    assert words in message
    assert f"init.{permission}=True permits" in message
    loaded = flat(path, wanted, **{permission: True})
    assert {name: array.shape for name, array in loaded.items()} == param_shapes(wanted)
    stored = some_arrays(tiny())
    touched = {"new_head": HEAD, "resize": (PLACE,), "drop_token": (PLACE,)}[permission]
    for name in set(loaded) - set(touched):
        np.testing.assert_array_equal(loaded[name], stored[name])
    if permission == "drop_token":
        np.testing.assert_array_equal(loaded[PLACE], stored[PLACE][:, 1:])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gelu": "erf"}, "gelu is 'tanh' there, 'erf' here: set model.gelu='tanh'"),
        ({"norm_eps": 1e-5}, "norm_eps is 1e-06 there, 1e-05 here"),
        ({"pixel_stats": "clip"}, "pixel_stats is 'half' there, 'clip' here"),
        ({"pos_embed_at": "shared"}, "pos_embed_at is 'stem' there, 'shared' here"),
    ],
    ids=lambda value: str(value)[:12],
)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_other_numerics_are_refused_where_the_file_tells_them(tmp_path, suffix, changes, words):
    path, other = told(tmp_path / f"x{suffix}", tiny()), tiny(**changes)
    message = refused(vit_jax.load_params, path, other)
    assert words in message
    assert "init.allow_numerics=True permits it" in message
    assert words in refused(
        vit_jax.load_params, path, other, new_head=True, resize=True, drop_token=True
    )
    assert_same(flat(path, other, allow_numerics=True), some_arrays(tiny()))


def test_a_plain_npz_tells_no_numerics_and_timms_files_do(tmp_path):
    path = plain_npz(tmp_path / "x.npz", tiny())
    other = tiny(gelu="erf", norm_eps=1e-5, pixel_stats="clip", pos_embed_at="shared")
    assert_same(flat(path, other), some_arrays(tiny()))
    path = told(tmp_path / "timm.safetensors", tiny())
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path)  # Without metadata.
    message = refused(vit_jax.load_params, path, tiny(norm_eps=1e-5))
    assert "gelu is 'erf' there" in message
    assert "norm_eps is 1e-06 there" in message
    assert_same(flat(path, tiny(gelu="erf")), some_arrays(tiny()))


def test_all_differences_are_one_line(tmp_path):
    path = told(tmp_path / "x.npz", tiny(pre_logits=True))
    other = tiny(gelu="erf", num_classes=5, image_size=16, mlp_size=12, pool="gap")
    message = refused(vit_jax.load_params, path, other)
    for words in (
        "gelu is 'tanh' there",
        "head/kernel is (8, 3) there, (8, 5) here",
        "Dense_0/kernel is (8, 16) there, (8, 12) here",
        "cls has no place here",
        "pre_logits/kernel has no place here",
        f"{PLACE} is (1, 5, 8) there, (1, 16, 8) here",
    ):
        assert words in message


@pytest.mark.parametrize("kind", ["learned_2d", "sincos", "none", "relative", "learned"])
def test_every_kind_of_position_goes_into_an_npz_and_comes_back(tmp_path, kind):
    model = tiny(pos_embed=kind, image_size=(8, 12))
    path = told(tmp_path / "x.npz", model)
    assert load.load(path).model == model
    assert_same(flat(path, model), some_arrays(model))
    larger = tiny(pos_embed=kind, image_size=(12, 20))
    if kind in ("sincos", "none"):  # Nothing is learned, nothing resized.
        assert_same(flat(path, larger), some_arrays(model))
    elif kind == "relative":
        assert "relative_embedding is" in refused(flat, path, larger, resize=True)
    else:
        assert "position grid 2x3 there, 3x5 here" in refused(flat, path, larger)
        shapes = {n: array.shape for n, array in flat(path, larger, resize=True).items()}
        assert shapes == param_shapes(larger)


def test_positions_that_no_file_tells_are_the_models(tmp_path):
    model = tiny(pos_embed="sincos")
    path = plain_npz(tmp_path / "bv.npz", model)
    assert_same(flat(path, model), some_arrays(model))
    assert "nothing says whether they are fixed (sincos) or none" in refused(load.load, path)


def test_layer_scales_of_another_width_are_refused(tmp_path):
    scale = "Transformer/encoderblock_0/LayerScale_1/scale"
    np.savez(tmp_path / "x.npz", **some_arrays(tiny()), **{scale: np.ones(4, np.float32)})
    assert f"{scale} is (4,) there" in refused(flat, tmp_path / "x.npz", tiny())


# Each array in its place.


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_are_put_where_they_are_wanted_and_are_the_same(tmp_path, suffix):
    model = tiny(gelu="erf")
    path = told(tmp_path / f"x{suffix}", model)
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


# What our own metadata may hold.


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
def test_hostile_metadata_ends_in_one_line(tmp_path, suffix, damage):
    path = told(tmp_path / f"x{suffix}", tiny(), **damage)
    words = "1 class names for a head of 3" if damage == {"classes": ["cat"]} else "is damaged"
    assert words in refused(load.load, path)


def test_what_would_take_memory_or_time_is_refused_before_any_is_taken(tmp_path):
    path = tmp_path / "x.npz"
    for kind in ("sincos", "none"):
        told(path, tiny(pos_embed=kind), image_size=[8192, 8192])
        assert "more than 16384 patches" in refused(load.load, path)
    told(path, tiny(pos_embed="learned_2d"), image_size=[8192, 8192])
    assert load.load(path).model.image_size == (8, 8)  # Which the shapes tell.
    told(path, tiny(pos_embed="relative"), image_size=[256, 512])
    assert "no relative positions of 8193 tokens" in refused(load.load, path)
    biases = [f"Transformer/encoderblock_{i}/LayerNorm_0/bias" for i in range(300)]
    np.savez(path, **some_arrays(tiny()) | dict.fromkeys(biases, np.ones(1, "f4")))
    assert "300 layers" in refused(load.load, path)
    np.savez(path, **some_arrays(tiny()) | {"embedding/kernel": np.ones((1, 1, 1, 9999), "f4")})
    assert "layers of width 8 after patches of width 9999" in refused(load.load, path)


def test_class_names_of_a_head_that_was_left_out_are_forgotten(tmp_path):
    path = told(tmp_path / "x.npz", tiny(num_classes=0), Facts(classes=("cat", "dog")))
    assert load.load(path).classes == ()


# WHERE.


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


def test_a_published_name_is_fetched_with_the_names_of_its_classes(server):
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
        assert (loaded.recipe.crop, loaded.recipe.resample) == ("resize", "tf_bilinear")
        assert_same(flat(name, model), some_arrays(model))


def test_urls_name_files_folders_and_runs(server, tmp_path):
    url, root = server
    path = plain_npz(root / "x.npz", tiny())
    for where in (f"{url}/x.npz", f"file://{path}", str(path)):
        assert_same(flat(where, tiny()), some_arrays(tiny()))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "contains no checkpoint; it contains nothing" in refused(load.load, f"file://{empty}")
    (empty / "model-00001-of-00002.safetensors").write_text("")
    assert "it holds model-00001-of-00002.safetensors" in refused(load.load, empty)


def test_an_unknown_name_gets_a_hint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "no such file, folder or published name. Did you mean ViT-S_16-gap-norep"
    with pytest.raises(CheckpointError, match=words):
        main.run(["predict", "--checkpoint=ViT-S_16-gap-nrep", "x.jpg"])


def test_a_folder_of_timms_is_read_by_its_name_and_inspected(tmp_path, capsys):
    path = told(tmp_path / "model.safetensors", tiny(gelu="erf"))
    arrays = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(arrays, path)
    config = {"architecture": "vit_tiny", "model_args": {"num_heads": 2}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same(trees.flatten(load.load(tmp_path).params()), some_arrays(tiny()))
    assert main.run(["inspect", str(tmp_path)]) == 0
    assert "blocks.0.attn.qkv.weight 24x8 float32" in " ".join(capsys.readouterr().out.split())


def test_inspecting_a_file_of_nothing_is_no_bug(tmp_path, capsys):
    np.savez(tmp_path / "empty.npz")
    assert main.run(["inspect", str(tmp_path / "empty.npz")]) == 0
    assert "parameters: 0" in capsys.readouterr().out


def test_what_a_file_says_reaches_the_terminal_as_json(tmp_path, capsys):
    path = tmp_path / "x.npz"
    write_npz(path, some_arrays(tiny()).items(), {"file": "other.npz", "note": "\x1b[2J", "\n": 1})
    assert main.run(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert f"file: {path}" in out


def test_class_names_must_be_as_many_as_the_head_has(tmp_path):
    path = plain_npz(tmp_path / "x.npz", tiny())
    with pytest.raises(ConfigError, match="2 class names for a head of 3"):
        load.load(path, ("cat", "dog"))
    loaded = load.load(path, ("cat", "dog", "fox"))
    assert (loaded.classes, loaded.has_class_names) == (("cat", "dog", "fox"), True)
    assert load.load(path).classes == ("class 0", "class 1", "class 2")


def test_a_file_that_cannot_be_read_does_not_stay_in_the_cache(server, tmp_path):
    url, root = server
    (root / "x.npz").write_text("an error page")
    assert "It is removed, to be fetched anew" in refused(load.load, f"{url}/x.npz")
    plain_npz(root / "x.npz", tiny())
    assert load.load(f"{url}/x.npz").model.num_classes == 3
    local = tmp_path / "y.npz"
    local.write_text("mine")
    refused(load.load, local.as_uri())
    assert local.exists()
