"""Checks of a stage before it runs: the classes of starting weights and of a teacher."""

import numpy as np
import pytest
from PIL import Image

from vit_jax import config, trees
from vit_jax.config.schema import Config, Data, Model
from vit_jax.errors import CheckpointError, ConfigError, DataError
from vit_jax.models.registry import build, param_shapes
from vit_jax.training.stage import prepare_stage
from vit_jax.weights import load
from vit_jax.weights.archive import write_npz
from vit_jax.weights.metadata import WeightsMetadata, from_model, to_json

TINY = Model(name="vit_ti16", patch=8, num_layers=1, hidden_size=8, mlp_size=8, num_heads=2)


def write_images(root, *titles):
    for title in titles:
        (root / title).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / title / f"{i}.png")
    return root


def write_weights(path, classes, count=2):
    """Weights whose head has the bias k for class k."""
    model = build(TINY, num_classes=count, image_size=8)
    arrays = {n: np.zeros(shape, np.float32) for n, shape in param_shapes(model).items()}
    arrays["head/bias"] = np.arange(count, dtype=np.float32)
    names = WeightsMetadata(classes=classes)
    write_npz(path, arrays.items(), to_json(from_model(model).with_defaults(names)))
    return path


def prepare(tmp_path, data, **fields):
    section = Data(source="folder", dir=str(data), image_size=8, val_split="")
    start = Config(model=TINY, data=section, steps=1, batch_size=8)
    return prepare_stage("", config.replaced(start, fields, "config"), tmp_path / "run", {})


def start_from(tmp_path, data, classes, **fields):
    path = write_weights(tmp_path / "w.npz", classes)
    return prepare(tmp_path, data, **{"init.path": str(path)} | fields)


def head_bias(stage):
    return trees.flatten(load.read_params(stage.start_from, stage.plan))["head/bias"].tolist()


def test_prepare_stage_puts_a_kept_head_in_the_order_of_the_data(tmp_path):
    data = write_images(tmp_path / "data", "apple", "bus")
    stage = start_from(tmp_path, data, ("bus", "apple"))
    assert head_bias(stage) == [1, 0]
    assert stage.plan.notes == ["outputs of the head put in the order of the class names"]
    same = start_from(tmp_path, data, ("apple", "bus"))
    assert (head_bias(same), same.plan.notes) == ([0, 1], [])


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        (("bus", "car"), r"class 'apple' .* class 0 is 'apple' here and 'bus' there"),
        (("bus", "bus"), "class 'apple' of the data is not among"),
        (None, r"2 classes of .*w\.npz, without names"),
    ],
    ids=["other", "twice", "no names"],
)
def test_prepare_stage_rejects_a_kept_head_of_other_classes(tmp_path, classes, text):
    data = write_images(tmp_path / "data", "apple", "bus")
    with pytest.raises(CheckpointError, match=f"{text}.*init.new_head=True"):
        start_from(tmp_path, data, classes)
    assert start_from(tmp_path, data, classes, **{"init.new_head": True}).plan.head_rows is None


def test_prepare_stage_keeps_a_head_without_names_for_numbered_classes(tmp_path, capsys):
    stage = start_from(tmp_path, write_images(tmp_path / "data", "0", "1"), None)
    assert head_bias(stage) == [0, 1]
    assert "class k of the data, a number, is output k" in capsys.readouterr().out


def test_prepare_stage_matches_a_teacher_by_name(tmp_path):
    data = write_images(tmp_path / "data", "bus", "car")

    def teacher(classes):
        path = write_weights(tmp_path / "teacher.npz", classes, len(classes))
        return prepare(tmp_path, data, **{"task.teacher": str(path)}).teacher

    assert teacher(("bus", "car")).params()["head"]["bias"].tolist() == [0, 1]
    assert teacher(("car", "bus")).params()["head"]["bias"].tolist() == [1, 0]
    with pytest.raises(ConfigError, match=r"class 'car' .* class 1 is 'car' here and 'bus' there"):
        teacher(("apple", "bus"))
    with pytest.raises(ConfigError, match="has 3 classes; the data has 2"):
        teacher(("bus", "car", "dog"))


def test_prepare_stage_gives_val_the_labels_of_training_by_name(tmp_path):
    data = write_images(tmp_path / "data", "train/bus", "train/car", "val/car")
    (data / "train.csv").write_text("path,label\ntrain/bus/0.png,bus\ntrain/car/0.png,car\n")
    (data / "val.csv").write_text("path,label\nval/car/0.png,car\n")
    options = {"data.source": "csv", "data.val_split": "val"}
    assert prepare(tmp_path, data, **options).val_source.labels.tolist() == [1]
    (data / "val.csv").write_text("path,label\nval/car/0.png,cat\n")
    with pytest.raises(DataError, match="class 'cat' is not among the 2 classes of training"):
        prepare(tmp_path, data, **options)
