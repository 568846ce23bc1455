"""Conversion between all formats: equal values, the table of tensors, and rejections."""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

import vit_jax
from tests.support.runs import run_main
from tests.support.tiny import assert_same_model
from vit_jax import main
from vit_jax.errors import CheckpointError, VitJaxError
from vit_jax.evaluation.setup import prepare_setup
from vit_jax.models import trees
from vit_jax.models.registry import param_shapes
from vit_jax.weights import adapt, convert, load, writer
from vit_jax.weights.archive import open_archive

pytestmark = pytest.mark.slow  # Trains or runs models for seconds.

CONFIG = """
from vit_jax.config import base_config


def get_config(arg=None):
    config = base_config()
    config.model.update(name="vit_ti16", patch=8, num_layers=1, hidden_size=16, mlp_size=32)
    config.model.num_heads = 2
    config.data.update(source="folder", dir={folder!r}, image_size=(16, 24))
    config.data.update(eval_crop="huggingface", eval_side=30, resample="bicubic")
    config.optimizer.update(lr=1e-3)
    config.data.val_split = ""
    config.update(batch_size=8, steps=1)
    return config
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory, photo_folder):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG.format(folder=str(photo_folder)))
    return path


@pytest.fixture(scope="module")
def paths(config, tmp_path_factory):
    """Paths of the same weights in every format, each converted from the one before."""
    root = tmp_path_factory.mktemp("paths")
    assert main.run([f"--config={config}", f"--workdir={root / 'run'}"]) == 0
    chain = {
        "run": root / "run",
        "npz": root / "1.npz",
        "safetensors": root / "2.safetensors",
        "huggingface": root / "3",
        "orbax": root / "4",
        "npz again": root / "5.npz",
    }
    for source, (file_format, path) in zip(chain.values(), list(chain.items())[1:]):
        flags = ["--format=orbax"] if file_format == "orbax" else []
        assert main.run(["convert", str(source), str(path), *flags]) == 0
    return chain


def lines_of(capsys, *arguments):
    assert main.run([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out.splitlines()


def error_of(*arguments) -> VitJaxError:
    with pytest.raises(VitJaxError) as caught:
        main.run([str(argument) for argument in arguments])
    assert "\n" not in str(caught.value)
    return caught.value


ALL_FORMATS = ["run", "npz", "safetensors", "huggingface", "orbax", "npz again"]


@pytest.mark.parametrize("file_format", ALL_FORMATS)
def test_every_format_has_equal_parameters_model_and_classes(paths, file_format):
    first, loaded = load.load(paths["run"]), load.load(paths[file_format])
    assert (loaded.config is None) == (file_format != "run")
    assert_same_model(loaded.model, first.model)
    assert (loaded.classes, loaded.has_class_names) == (("flower", "temple"), True)
    assert loaded.recipe == first.recipe
    data = {"data.source": "folder", "data.dir": "."}
    assert prepare_setup(str(paths[file_format]), data).recipe == first.recipe
    expected = trees.flatten(first.params())
    for params in (loaded.params(), vit_jax.load_params(paths[file_format], first.model)):
        found = trees.flatten(params)
        assert set(found) == set(expected)
        for name, array in expected.items():
            assert found[name].tobytes() == np.asarray(array).tobytes(), name


def test_npz_converted_through_all_formats_has_equal_contents(paths):
    first, last = (dict(np.load(paths[file_format])) for file_format in ("npz", "npz again"))
    assert list(first) == list(last)
    for name in first:
        assert first[name].dtype == np.float32
        assert first[name].tobytes() == last[name].tobytes()
    assert open_archive(paths["npz"]).metadata == open_archive(paths["npz again"]).metadata


def test_predictions_and_scores_are_equal_in_every_format(paths, photo_folder, tmp_path, capsys):
    photos = sorted((photo_folder / "val").rglob("*.jpg"))[::3]
    found, scores = set(), set()
    for file_format in ("run", "huggingface", "orbax"):
        where = f"--checkpoint={paths[file_format]}"
        found.add(tuple(lines_of(capsys, "predict", where, *photos, "--json")))
        data = [f"--config.data.dir={photo_folder}", "--config.data.source=folder"]
        data.append("--config.data.split=val")
        out = lines_of(capsys, "evaluate", where, *data, f"--out={tmp_path / file_format}")
        scores.add(out[-1])
    assert len(found) == len(scores) == 1
    assert scores.pop().endswith("n=14/14")
    first = json.loads(found.pop()[0])
    assert {each["class"] for each in first["predictions"]} == {"flower", "temple"}


def test_train_starts_from_a_converted_folder(paths, config, tmp_path):
    start = [f"--config.init.path={paths['huggingface']}", "--config.optimizer.lr=1e-30"]
    assert main.run([f"--config={config}", f"--workdir={tmp_path}", *start]) == 0
    first, after = (trees.flatten(load.load(place).params()) for place in (paths["run"], tmp_path))
    for name, array in first.items():
        np.testing.assert_allclose(after[name], array, rtol=1e-6, atol=1e-20, err_msg=name)


# Printed lines.


def test_evaluate_of_converted_weights_needs_data(paths):
    for file_format in ALL_FORMATS[1:]:
        error = error_of("evaluate", f"--checkpoint={paths[file_format]}")
        assert error.exit_code == 2
        assert "these weights have no config; set the data" in str(error)


def test_closing_line_has_counts_and_difference(paths, tmp_path, capsys):
    out = lines_of(capsys, "convert", paths["run"], tmp_path / "x.npz")
    shapes = param_shapes(load.load(paths["run"]).model)
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    start = f"done: tensors={len(shapes)} parameters={total:,} logits_difference=0.0e+00 largest="
    assert out[-1].startswith(start)
    assert out[-1].endswith(f" destination={tmp_path / 'x.npz'}")


def test_code_in_the_model_card_creates_the_model(paths):
    for file_format, path in paths.items():
        card = (
            path / "README.md"
            if file_format == "huggingface"
            else path.with_name(f"{path.name}.md")
        )
        if file_format in ("run", "orbax"):
            continue
        text = card.read_text()
        call = next(line for line in text.splitlines() if line.startswith("model = "))
        model = eval(call.removeprefix("model = "), {"vit_jax": vit_jax})
        assert_same_model(model, load.load(path).model)
        assert "Classes: flower, temple" in text
        assert "centre crop after resizing to 30, rounded as in huggingface (bicubic)" in text


D, SCALES = 8, {"layer_scale": 1.0, "gelu": "erf"}
TINY = {"num_layers": 1, "hidden_size": D, "mlp_size": 16, "num_heads": 2, "num_classes": 3}


def timm_file(path, extra=(), **options):
    """A timm file with its config.json; its path and tensors."""
    model = vit_jax.create_model("vit_b4", **{"image_size": 8} | TINY | options)
    random = np.random.default_rng(0)
    shapes = param_shapes(model)
    arrays = {n: random.normal(0, 0.3, s).astype(np.float32) for n, s in shapes.items()}
    stored = dict(writer.export_tensors(writer.plan_export("safetensors", model, shapes), arrays))
    stored |= {name: np.ones(D, np.float32) for name in extra}
    safetensors.numpy.save_file(stored, path)
    config = {"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 2}}
    (path.parent / "config.json").write_text(json.dumps(config))
    return path, stored


def table_of(out):
    """Source, destination, shape and change of each row of the table."""
    rows = [line.split(None, 3) for line in out]
    assert rows[0] == ["source", "destination", "shape", "change"]
    return [
        row for row in rows[1:] if len(row) == 4 and re.fullmatch(r"[\dx]+(->[\dx]+)?|-", row[2])
    ]


def test_table_lists_the_change_of_every_tensor(tmp_path, capsys):
    path, stored = timm_file(tmp_path / "timm.safetensors", ["mask_token"], **SCALES)
    flags = ["--image_size=12", "--no_head"]
    out = lines_of(capsys, "convert", path, tmp_path / "x.npz", *flags)
    rows = table_of(out)
    assert {row[0] for row in rows} == set(stored)
    assert {row[1] for row in rows} - {"-"} == set(np.load(tmp_path / "x.npz"))
    changes = {(row[0], row[1].rpartition("/")[2]): row[3] for row in rows}
    assert changes["mask_token", "-"] == "ignored: not a parameter of the model"
    assert changes["pos_embed", "pos_embedding"] == "renamed, resized"
    assert (
        changes["blocks.0.mlp.fc2.weight", "kernel"] == "renamed, transposed, LayerScale folded in"
    )
    assert changes["blocks.0.ls1.gamma", "-"] == "folded"
    assert changes["blocks.0.attn.qkv.weight", "kernel"] == "renamed, split"
    assert changes["head.weight", "-"] == "dropped"
    written = np.load(tmp_path / "x.npz")
    for source, destination, shape, _ in rows:
        before, _, after = shape.partition("->")
        if destination == "-":
            continue
        assert before == "x".join(map(str, stored[source].shape))
        assert (after or before) == "x".join(map(str, written[destination].shape))
    assert changes["blocks.0.norm1.bias", "bias"] == "renamed"
    assert "position embeddings resized from 2x2 to 3x3" in out
    assert "features_difference=" in out[-1]


def test_table_reports_the_position_of_the_class_token(tmp_path, capsys):
    path, stored = timm_file(tmp_path / "reg.safetensors", registers=2, gelu="erf")
    assert stored["pos_embed"].shape == (1, 4, D)
    rows = table_of(lines_of(capsys, "convert", path, tmp_path / "x.npz"))
    assert "renamed, class token's position zeros" in {row[3] for row in rows}
    out = lines_of(capsys, "convert", tmp_path / "x.npz", tmp_path / "y.safetensors")
    assert "renamed, position folded in" in {row[3] for row in table_of(out)}
    written = safetensors.numpy.load_file(tmp_path / "y.safetensors")
    assert {name: a.tobytes() for name, a in written.items()} == {
        name: a.tobytes() for name, a in stored.items()
    }
    gap = lines_of(capsys, "convert", path, tmp_path / "gap.npz", "--pool=gap")
    assert "class token and its position embedding dropped" in gap
    assert "cls" not in np.load(tmp_path / "gap.npz")
    assert load.load(tmp_path / "gap.npz").model.config.pool == "gap"


def test_weights_without_class_names_have_none_in_any_format(tmp_path, photo_folder, capsys):
    path, _ = timm_file(tmp_path / "timm.safetensors", num_classes=2, gelu="erf")
    main.run(["convert", str(path), str(tmp_path / "orbax"), "--format=orbax"])
    main.run(["convert", str(tmp_path / "orbax"), str(tmp_path / "x.npz")])
    assert "classes" not in open_archive(tmp_path / "x.npz").metadata
    data = [f"--config.data.dir={photo_folder}", "--config.data.source=folder"]
    (tmp_path / "map.txt").write_text("1\n0\n")
    for where in (tmp_path / "orbax", tmp_path / "x.npz"):
        loaded = load.load(where)
        assert (loaded.classes, loaded.has_class_names) == (("class 0", "class 1"), False)
        evaluate = ("evaluate", f"--checkpoint={where}", *data, f"--out={tmp_path / 'scores'}")
        assert "2 classes of" in str(error_of(*evaluate))
        out = lines_of(capsys, *evaluate, f"--class_map={tmp_path / 'map.txt'}")
        assert out[-1].endswith("n=14/14")


# Rejections.


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nowhere.npz", "x.npz"], 4, "nowhere.npz: no such file"),
        (["ViT-B_61", "x.npz"], 4, "Did you mean"),
        (["{npz}", "x.npz", "--model=vit_b16"], 4, "size is Size(num_layers=1"),
        (["{npz}", "x.npz", "--model=bit_r50x1"], 4, "units is None"),
        (["{npz}", "x.npz", "--model=vit_x16"], 2, "unknown"),
        (["{npz}", "x.npz", "--format=safetensors"], 2, "a file that ends in .safetensors"),
        (["{npz}", "x.npz", "--format=orbax"], 2, "needs a folder"),
        (["{npz}", "x", "--format=npz"], 2, "a file that ends in .npz"),
        (["{npz}", "x.npz", "--format=onnx"], 2, "invalid choice"),
        (["{npz}", "x.npz", "--image_size=20"], 2, "nearest sizes: 16 or 24"),
        (["{npz}", "x.npz", "--image_size=0"], 2, "expected at least 1"),
        (["{npz}", "x.npz", "--pool=map"], 2, "invalid choice"),
        (["{npz}", "{huggingface}"], 2, "exists; name a new folder"),
        (["{npz}", "{orbax}", "--format=orbax"], 2, "exists; name a new folder"),
        (["{npz}", "."], 2, "not the name of a new file or folder"),
        (["{npz}", "{npz}"], 2, "is the source"),
        (["{npz}", "https://bucket/x.npz"], 2, "new file or folder on a disk or in a bucket"),
        (["{npz}", "x.safetensor"], 2, "unknown suffix .safetensor; expected"),
        (["{npz}"], 2, "required: DESTINATION"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_convert_rejects_wrong_arguments_in_one_line_and_writes_nothing(
    paths, tmp_path, monkeypatch, arguments, code, text
):
    monkeypatch.chdir(tmp_path)
    error = error_of("convert", *(argument.format(**paths) for argument in arguments))
    assert error.exit_code == code
    assert text in str(error)
    assert list(tmp_path.iterdir()) == []


def test_convert_replaces_no_other_file(paths, tmp_path):
    (tmp_path / "x.npz.md").write_text("# My notes")
    assert "x.npz.md exists and would be overwritten" in str(
        error_of("convert", paths["npz"], tmp_path / "x.npz")
    )
    (tmp_path / "new" / "hf.tmp").mkdir(parents=True)
    (tmp_path / "new" / "hf.tmp" / "thesis.tex").touch()
    for name in ("hf", "deeper/y.npz"):
        assert main.run(["convert", str(paths["npz"]), str(tmp_path / "new" / name)]) == 0
    assert (tmp_path / "new" / "hf.tmp" / "thesis.tex").exists()
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"hf", "hf.tmp", "deeper"}
    again = ["convert", str(paths["npz"]), str(tmp_path / "new" / "deeper" / "y.npz")]
    assert "y.npz exists; name a new file, or give --overwrite" in str(error_of(*again))
    assert main.run([*again, "--overwrite"]) == 0


def test_convert_rejects_weights_with_nan(tmp_path):
    path, stored = timm_file(tmp_path / "timm.safetensors")
    stored["head.bias"][0] = np.nan
    safetensors.numpy.save_file(stored, path)
    error = error_of("convert", path, tmp_path / "x.npz")
    assert error.exit_code == 4
    assert "head/bias contains values that are not finite" in str(error)
    assert not (tmp_path / "x.npz").exists()


def test_convert_detects_scales_folded_into_the_wrong_layer(tmp_path, monkeypatch):
    path, _ = timm_file(tmp_path / "timm.safetensors", layer_scale=1.0)
    assert main.run(["convert", str(path), str(tmp_path / "right.npz")]) == 0
    swapped = dict(zip(adapt.SCALED_LAYERS, reversed(adapt.SCALED_LAYERS.values())))
    monkeypatch.setattr(adapt, "SCALED_LAYERS", swapped)
    assert "outputs on a photo differ" in str(error_of("convert", path, tmp_path / "x.npz"))
    assert not (tmp_path / "x.npz").exists()


def test_convert_detects_different_outputs_and_deletes_the_file(paths, tmp_path, monkeypatch):
    def swapped(plan, params):
        arrays = dict(export_tensors(plan, params))
        block = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1"
        key, value = f"{block}/key/kernel", f"{block}/value/kernel"
        yield from (arrays | {key: arrays[value], value: arrays[key]}).items()

    export_tensors = writer.export_tensors
    monkeypatch.setattr(writer, "export_tensors", swapped)
    with pytest.raises(CheckpointError, match="outputs on a photo differ"):
        convert.convert(str(paths["npz"]), str(tmp_path / "x.npz"))
    assert not (tmp_path / "x.npz").exists()


def test_convert_on_eight_devices_writes_the_same_file(paths, tmp_path):
    done = run_main("convert", paths["npz"], tmp_path / "x.safetensors", devices=8)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1].startswith("done: tensors=")
    first, again = (safetensors.numpy.load_file(path) for path in (
        paths["safetensors"], tmp_path / "x.safetensors"))  # fmt: skip
    assert {n: a.tobytes() for n, a in first.items()} == {n: a.tobytes() for n, a in again.items()}
