"""A data set prepared as ArrayRecord is read by name and without TensorFlow."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from vit_jax.config.schema import Data
from vit_jax.data import subsets
from vit_jax.data.decode import decode
from vit_jax.data.sources import open_split
from vit_jax.errors import ConfigError, DataError

# In a process of its own: it imports all of TFDS, and a user prepares data elsewhere too.
PREPARE = """
import io, sys
import numpy as np, tensorflow_datasets as tfds
from PIL import Image

class TinyShapes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    LABEL = tfds.features.ClassLabel(names=["disc", "square", "star"])

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3))
        features = tfds.features.FeaturesDict({"image": image, "label": self.LABEL})
        return tfds.core.DatasetInfo(
            builder=self, features=features, supervised_keys=("image", "label"))

    def _split_generators(self, _):
        return {"train": self._generate_examples(8), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
        for i in range(count):
            file = io.BytesIO()
            Image.fromarray(np.full((6, 5, 3), 10 * i, np.uint8)).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file, "label": i % 3}

class PlainNumbers(TinyShapes):
    LABEL = tfds.features.Scalar(np.int64)

for builder in (TinyShapes, PlainNumbers):
    builder(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""

READ = """
import json, sys
from vit_jax.data.decode import decode
from vit_jax.config.schema import Data
from vit_jax.data.array_record import open_tfds

source = open_tfds(Data(dataset="tiny_shapes", dir=sys.argv[1]), "train")
found = [[int(decode(source[i]["image"]).mean()), source[i]["label"]] for i in range(len(source))]
print(json.dumps({"found": sorted(found), "tensorflow": "tensorflow" in sys.modules}))
"""


def run_python(code: str, *arguments) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tfds")
    run_python(PREPARE, folder)
    return str(folder)


def open_tfds(folder: str, split: str = "train", dataset: str = "tiny_shapes"):
    return open_split(Data(source="tfds", dataset=dataset, dir=folder), split)


def test_open_tfds_reads_every_example_without_tensorflow(folder):
    read = json.loads(run_python(READ, folder).splitlines()[-1])
    assert read["tensorflow"] is False
    assert read["found"] == [[10 * i, i % 3] for i in range(8)]


def test_tfds_records_have_the_images_and_classes_of_the_data_set(folder):
    source = open_tfds(folder)
    assert source.classes == open_tfds(folder, "test").classes == ("disc", "square", "star")
    assert len(source) == 8
    assert len(open_tfds(folder, "test")) == 3
    for i in range(8):
        record = source[i]
        image = decode(record["image"])
        assert image.dtype == np.uint8
        assert image.shape == (6, 5, 3)
        assert record["label"] == image[0, 0, 0] // 10 % 3 == source.labels[i]
        assert record["image"].name == source.name(i)
    assert source.name(2) == "tiny_shapes/1.0.0/train#2"


def test_open_tfds_accepts_a_version(folder):
    assert len(open_tfds(folder, dataset="tiny_shapes:1.0.0")) == 8


def test_slices_of_a_tfds_split_are_disjoint_and_complete(folder):
    parts = [open_tfds(folder, split) for split in ("train[:50%]", "train[50%:]")]
    assert [len(part) for part in parts] == [4, 4]
    greys = sorted(int(decode(part[i]["image"]).mean()) for part in parts for i in range(4))
    assert greys == [10 * i for i in range(8)]
    assert len(open_tfds(folder, "train[2:5]")) == 3


def test_draw_subset_uses_the_labels_of_tfds_records(folder):
    source = subsets.draw_subset(open_tfds(folder), Data(per_class=2))
    assert sorted(source.labels) == [0, 0, 1, 1, 2, 2]
    assert [source[i]["label"] for i in range(6)] == list(source.labels)


def test_open_tfds_rejects_an_unknown_split_with_the_known_ones(folder):
    for split in ("val", "val[:50%]"):
        words = r"tiny_shapes has splits \['test', 'train'\], not 'val"
        with pytest.raises(DataError, match=words):
            open_tfds(folder, split)


def test_open_tfds_rejects_a_slice_with_a_wrong_syntax(folder):
    with pytest.raises(DataError, match=r"tiny_shapes cannot be read .*train\[:a\]"):
        open_tfds(folder, "train[:a]")


def test_open_tfds_gives_the_command_that_prepares_missing_data(folder):
    words = r"data\.dataset=cifar10 is not under .*/cifar10/.*; prepare it once with `pip install"
    with pytest.raises(DataError, match=words) as caught:
        open_tfds(folder, dataset="cifar10")
    assert "file_format='array_record'" in str(caught.value)
    assert f"data_dir='{folder}'" in str(caught.value)


def test_open_tfds_needs_a_name(folder):
    with pytest.raises(DataError, match=r"needs data\.dataset"):
        open_tfds(folder, dataset="")


def test_open_tfds_rejects_an_unknown_name_with_the_nearest(folder):
    words = r"data\.dataset=cifer10: not a TFDS data set\. Did you mean cifar10\?$"
    with pytest.raises(DataError, match=words):
        open_tfds(folder, dataset="cifer10")


def test_open_tfds_rejects_an_unknown_version(folder):
    with pytest.raises(DataError, match=r"data\.dataset=tiny_shapes:9\.0\.0"):
        open_tfds(folder, dataset="tiny_shapes:9.0.0")


def test_open_tfds_rejects_a_data_set_without_classes(folder):
    with pytest.raises(DataError, match=r"data\.dataset=plain_numbers"):
        open_tfds(folder, dataset="plain_numbers")


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_open_tfds_imports_no_class_of_another_package(folder, key, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "data")
    (file,) = tmp_path.glob("data/tiny_shapes/*/features.json")
    text = file.read_text().replace("tensorflow_datasets.core.features.image_feature", "own.part")
    file.write_text(text.replace("pythonClassName", key))
    (tmp_path / "own.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(tmp_path)
    data = Data(source="tfds", dataset="tiny_shapes", dir=str(tmp_path / "data"))
    message = (
        r"features\.json is 'own\.part:Image': not part of vit_jax\..*set VIT_JAX_TRUSTED=tests,own"
    )
    with pytest.raises(ConfigError, match=message):
        open_split(data, "train")


@pytest.mark.parametrize("name", ["huggingface:mnist", "my_namespace:tiny_shapes", "a b"])
def test_open_tfds_rejects_data_sets_of_other_people(folder, name):
    with pytest.raises(DataError, match="expected a name of TFDS"):
        open_split(Data(source="tfds", dataset=name, dir=folder), "train")
