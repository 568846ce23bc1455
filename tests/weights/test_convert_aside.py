"""A conversion gets its name after it was read back: nothing looks finished before."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import vit_jax
from tests.support.runs import ROOT
from vit_jax import main
from vit_jax.errors import CheckpointError, ConfigError
from vit_jax.models.registry import param_shapes
from vit_jax.weights import convert, load, save, writer

MODEL = vit_jax.create_model(
    *("vit_b4",), image_size=8, num_layers=1, hidden_size=8, mlp_size=16, num_heads=2, num_classes=3
)  # fmt: skip
DESTINATIONS = {"npz": "y.npz", "safetensors": "y.safetensors", "huggingface": "y", "orbax": "y"}


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
    """An official file, alone in a folder."""
    (tmp_path / "source").mkdir()
    random = np.random.default_rng(0)
    shapes = param_shapes(MODEL)
    plan = writer.plan_export("npz", MODEL, shapes)
    arrays = {name: random.normal(0, 0.3, shape) for name, shape in shapes.items()}
    arrays["head/kernel"] *= 0  # A new head: its logits compare nothing.
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    np.savez(tmp_path / "source" / "x.npz", **dict(writer.export_tensors(plan, arrays)))
    return tmp_path / "source" / "x.npz"


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """An empty folder for the destination."""
    (tmp_path / "new").mkdir()
    return tmp_path / "new"


def run_convert(source, destination, file_format="npz", **options) -> str:
    return convert.convert(str(source), str(destination), file_format=file_format, **options)


@pytest.mark.parametrize("file_format", DESTINATIONS)
def test_files_are_aside_until_they_are_read_back(source, folder, monkeypatch, file_format):
    seen = []

    def verify(path, written, *_):
        seen.append([name for name in os.listdir(folder) if not name.startswith(".vit_jax-")])
        assert path.exists()
        raise CheckpointError(f"{path}: stop.")

    monkeypatch.setattr(convert, "_photo_outputs", lambda *_: {"features": np.ones(1)})
    monkeypatch.setattr(save, "verify_params", verify)
    destination = folder / DESTINATIONS[file_format]
    with pytest.raises(CheckpointError, match=f"^{destination}: stop.$"):
        run_convert(source, destination, file_format)
    assert seen == [[]]
    assert os.listdir(folder) == []


def test_empty_folder_is_filled_and_a_full_one_refused(source, folder, monkeypatch):
    monkeypatch.setattr(convert, "_photo_outputs", lambda *_: {"features": np.ones(1)})
    (folder / "y").mkdir()
    run_convert(source, folder / "y", "orbax")
    assert load.load(folder / "y").model.num_classes == 3
    (folder / "z").mkdir()
    (folder / "z" / "thesis").touch()
    with pytest.raises(ConfigError, match="exists; name a new folder"):
        run_convert(source, folder / "z", "orbax")


def test_head_of_zeros_is_compared_by_features(source, folder):
    line = run_convert(source, folder / "y.npz")
    values = dict(word.split("=") for word in line.split()[1:])
    assert float(values["largest"]) < float(values["largest_feature"])
    assert float(values["largest_feature"]) > 0.1
    assert values["features_difference"] == values["logits_difference"] == "0.0e+00"


@pytest.mark.parametrize("changed", ["head/kernel", "Transformer/encoder_norm/bias"])
def test_parameters_that_outputs_do_not_show_are_compared(source, folder, monkeypatch, changed):
    export_tensors = writer.export_tensors

    def export(plan, params):
        for name, array in export_tensors(plan, params):
            yield name, array + np.float32(name == changed)

    monkeypatch.setattr(convert, "_photo_outputs", lambda *_: {"features": np.ones(1)})
    monkeypatch.setattr(writer, "export_tensors", export)
    with pytest.raises(CheckpointError, match=f"{changed} has other values"):
        run_convert(source, folder / "y.npz")
    assert os.listdir(folder) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_class_names_of_another_file_are_refused(source, folder, monkeypatch, overwrite):
    monkeypatch.setattr(convert, "_photo_outputs", lambda *_: {"features": np.ones(1)})
    (folder / "y.classes.txt").write_text("my\nthree\nnames\n")
    with pytest.raises(ConfigError, match=r"y.classes.txt exists: its lines would name"):
        run_convert(source, folder / "y.npz", overwrite=overwrite)
    assert os.listdir(folder) == ["y.classes.txt"]


def test_source_is_never_the_destination(source, folder):
    (folder / "link.npz").symlink_to(source)
    (folder / "hard.npz").hardlink_to(source)
    for destination in (source, folder / "link.npz", folder / "hard.npz"):
        with pytest.raises(ConfigError, match="is the source; choose another file"):
            run_convert(source, destination, overwrite=True)


def test_full_disk_during_a_conversion_names_the_destination(source, folder, monkeypatch):
    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "_photo_outputs", lambda *_: {"features": np.ones(1)})
    monkeypatch.setattr(os, "fsync", full_disk)
    for name in ("y.npz", "y"):
        file_format = "npz" if name == "y.npz" else "huggingface"
        with pytest.raises(OSError, match=r"bytes needed, [\d,]+ bytes free") as caught:
            run_convert(source, folder / name, file_format)
        assert caught.value.filename == str(folder / name)
    assert os.listdir(folder) == []


KILLED = """
import os, signal, sys
from vit_jax.weights import convert, save
arguments = sys.argv[1:]
save.verify_params = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
convert.convert(*arguments[:2], file_format=arguments[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("file_format", DESTINATIONS)
def test_killed_conversion_can_be_repeated(source, folder, file_format):
    destination = folder / DESTINATIONS[file_format]
    command = [sys.executable, "-c", KILLED, source, destination, file_format]
    process = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == -9, process.stderr
    assert all(name.startswith(".vit_jax-") for name in os.listdir(folder))
    flags = ["--format=orbax"] if file_format == "orbax" else []
    assert main.run(["convert", str(source), str(destination), *flags]) == 0
    card = [f"{destination.name}.md"] if destination.suffix else []
    assert sorted(os.listdir(folder)) == [destination.name, *card]
