"""The data that an evaluation scores: held out of training, or all of it."""

import dataclasses
import shutil
import types

import pytest
from PIL import Image

from tests.support.json_steps import write_step
from vit_jax.checkpoints import layout
from vit_jax.config.schema import Config, Data
from vit_jax.data.sources import open_training
from vit_jax.errors import ConfigError, DataError
from vit_jax.evaluation.setup import EvaluationSetup
from vit_jax.prepare.prepare import prepare_dataset


def make_images(root, *titles: str, count: int = 20):
    for k, title in enumerate(titles):
        (root / title).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (2, 2), (i, k, 0)).save(root / title / f"{i}.png")
    return root


@pytest.fixture
def folder(tmp_path):
    """Forty images of two classes, without splits."""
    return make_images(tmp_path / "data", "cat", "dog")


def setup_for(data: Data, *, trained_on: Data | None, **overrides) -> EvaluationSetup:
    config = trained_on and Config(steps=1, data=trained_on)
    weights = types.SimpleNamespace(where="run/checkpoints/1")
    loaded = types.SimpleNamespace(config=config, weights=weights)
    values = {f"data.{name}": value for name, value in overrides.items()}
    data = dataclasses.replace(data, **overrides)
    return EvaluationSetup(loaded, Config(steps=1, data=data), values, None, {}, None, None)


def num_scored(setup: EvaluationSetup) -> int:
    return len(setup.open_scored(setup.split()))


@pytest.mark.parametrize("source", ["folder", "prepared", "csv"])
def test_open_scored_holds_nothing_out_of_data_that_nothing_trains_on(
    source, folder, tmp_path, monkeypatch
):
    step = {"fingerprints": {"train": 0}}
    monkeypatch.setattr(layout, "read_item", lambda path, name: step)
    data = Data(source=source, dir=str(folder))
    if source == "prepared":
        prepare_dataset(str(folder), str(tmp_path / "set"), workers=1)
        data = dataclasses.replace(data, dir=str(tmp_path / "set"))
    elif source == "csv":
        rows = [f"{path},{path.parent.name}" for path in sorted(folder.rglob("*.png"))]
        (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
        data = dataclasses.replace(data, dir=str(tmp_path / "list.csv"))
    other = Data(source="folder", dir="elsewhere")
    for run in (None, Data(source="digits"), other):
        assert num_scored(setup_for(data, trained_on=run)) == 40
        assert num_scored(setup_for(data, trained_on=run, split="val")) == 40
        assert num_scored(setup_for(data, trained_on=run, split="train")) == 40
    for changed in ({"val_split": "test"}, {"val_split": ""}, {"dev": 0.25}):
        run = dataclasses.replace(other, **changed)
        assert num_scored(setup_for(dataclasses.replace(data, **changed), trained_on=run)) == 40
    for run in (data, dataclasses.replace(other, source=source, mix=((data.dir, 1),))):
        assert num_scored(setup_for(data, trained_on=run)) == 4


def test_open_scored_rejects_a_missing_split_beside_others(folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(folder, tmp_path / "parted" / split)
    data = Data(source="folder", dir=str(tmp_path / "parted"))
    with pytest.raises(DataError, match="no folder for split 'val'; found test, train"):
        num_scored(setup_for(data, trained_on=None))
    assert num_scored(setup_for(data, trained_on=None, split="test")) == 40


def test_open_scored_holds_out_the_same_images_of_training_data_that_was_moved(
    folder, tmp_path, monkeypatch
):
    run = Data(source="folder", dir=str(folder))
    step = {"fingerprints": {"train": open_training(run).fingerprint()}}
    monkeypatch.setattr(layout, "read_item", lambda path, name: step)
    moved = folder.rename(tmp_path / "moved")
    assert num_scored(setup_for(dataclasses.replace(run, dir=str(moved)), trained_on=run)) == 4
    other = make_images(tmp_path / "other", "cat", "cow")
    assert num_scored(setup_for(dataclasses.replace(run, dir=str(other)), trained_on=run)) == 40


def test_open_scored_knows_training_data_that_was_moved_from_best_weights(folder, tmp_path):
    run = Data(source="folder", dir=str(folder))
    fingerprints = {"train": open_training(run).fingerprint()}
    write_step(tmp_path / "checkpoints", 8, data={"fingerprints": fingerprints})
    best = write_step(tmp_path / "best", 4)
    moved = folder.rename(tmp_path / "moved")
    setup = setup_for(dataclasses.replace(run, dir=str(moved)), trained_on=run)
    setup.loaded.weights.where = str(best)
    assert num_scored(setup) == 4
    shutil.rmtree(tmp_path / "checkpoints")
    setup = setup_for(dataclasses.replace(run, dir=str(moved)), trained_on=run)
    setup.loaded.weights.where = str(best)
    assert num_scored(setup) == 40


def test_open_scored_rejects_the_size_of_a_training_subset(folder):
    data = Data(source="folder", dir=str(folder))
    with pytest.raises(ConfigError, match=r"--config\.data\.per_class has no effect on val, which"):
        num_scored(setup_for(data, trained_on=None, per_class=1))


def test_result_path_keeps_results_of_another_checkpoint(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setup = setup_for(Data(source="folder", dir=str(folder)), trained_on=None)
    setup.loaded.folder = None  # A file of weights.
    path = setup.result_path(None, "eval-a/b.json")
    assert str(path) == "eval-a_b.json"
    path.write_text('{"checkpoint": "run/checkpoints/1"}')
    assert setup.result_path(None, path.name) == path
    path.write_text(f'{{"checkpoint": "{tmp_path}/run/checkpoints/1"}}')
    assert setup.result_path(None, path.name) == path
    path.write_text('{"checkpoint": "other.npz"}')
    with pytest.raises(
        ConfigError, match=r"eval-a_b\.json has the results of other\.npz; set --out"
    ):
        setup.result_path(None, path.name)
    assert setup.result_path("scores", path.name).parent.name == "scores"
    setup.loaded.folder = tmp_path  # Runs replace their own results.
    assert setup.result_path(None, path.name) == tmp_path / path.name
