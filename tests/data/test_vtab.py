"""VTAB-1k's tasks: splits, label rules and pixels, from data sets of TFDS's own builders."""

import dataclasses
import math
import pickle
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from tests.support.runs import ROOT
from vit_jax import config as config_lib
from vit_jax.config.schema import Data
from vit_jax.data import vtab
from vit_jax.data.decode import decode
from vit_jax.data.sources import open_both, open_split
from vit_jax.errors import DataError

RETINOPATHY = "diabetic_retinopathy_detection/btgraham-300"
CATALOGUE = {  # Examples of each split, from the catalogue of TensorFlow Datasets.
    "caltech101": {"train": 3059, "test": 6085},
    "cifar100": {"train": 50_000, "test": 10_000},
    "dtd": {"train": 1880, "validation": 1880, "test": 1880},
    "oxford_flowers102": {"train": 1020, "validation": 1020, "test": 6149},
    "oxford_iiit_pet": {"train": 3680, "test": 3669},
    "sun397/tfds": {"train": 76_128, "validation": 10_875, "test": 21_750},
    "svhn_cropped": {"train": 73_257, "test": 26_032, "extra": 531_131},
    "patch_camelyon": {"train": 262_144, "validation": 32_768, "test": 32_768},
    "eurosat/rgb": {"train": 27_000},
    "resisc45": {"train": 31_500},
    RETINOPATHY: {"train": 35_126, "validation": 10_906, "test": 42_670},
    "clevr": {"train": 70_000, "validation": 15_000, "test": 15_000},
    "dmlab": {"train": 65_550, "validation": 22_628, "test": 22_735},
    "dsprites": {"train": 737_280},
    "kitti": {"train": 6347, "validation": 423, "test": 711},
    "smallnorb": {"train": 24_300, "test": 24_300},
}
TABLE_9 = {  # In its order: TFDS's name, where val200 begin, the test split, classes.
    "caltech101": ("caltech101", "train[2753:2953]", "test", 102),
    "cifar100": ("cifar100", "train[45000:45200]", "test", 100),
    "dtd": ("dtd", "validation[0:200]", "test", 47),
    "flowers": ("oxford_flowers102", "validation[0:200]", "test", 102),
    "pets": ("oxford_iiit_pet", "train[2944:3144]", "test", 37),
    "sun397": ("sun397/tfds", "validation[0:200]", "test", 397),
    "svhn": ("svhn_cropped", "train[65931:66131]", "test", 10),
    "camelyon": ("patch_camelyon", "validation[0:200]", "test", 2),
    "eurosat": ("eurosat/rgb", "train[16200:16400]", "train[80%:]", 10),
    "resisc45": ("resisc45", "train[18900:19100]", "train[80%:]", 45),
    "retinopathy": (RETINOPATHY, "validation[0:200]", "test", 5),
    "clevr_count": ("clevr", "train[63000:63200]", "validation", 8),
    "clevr_dist": ("clevr", "train[63000:63200]", "validation", 6),
    "dmlab": ("dmlab", "validation[0:200]", "test", 6),
    "dsprites_loc": ("dsprites", "train[589824:590024]", "train[90%:]", 16),
    "dsprites_ori": ("dsprites", "train[589824:590024]", "train[90%:]", 16),
    "kitti_dist": ("kitti", "validation[0:200]", "test", 4),
    "smallnorb_azim": ("smallnorb", "test[0:200]", "test[50%:]", 18),
    "smallnorb_elev": ("smallnorb", "test[0:200]", "test[50%:]", 9),
}


def test_tasks_are_those_of_table_9_in_its_order():
    assert list(vtab.TASKS) == list(TABLE_9)
    sizes = {group: len(tasks) for group, tasks in vtab.GROUPS.items()}
    assert sizes == {"natural": 7, "specialized": 4, "structured": 8}
    stages = config_lib.check(config_lib.load(f"{ROOT}/configs/vtab.py:task=all"))
    assert list(stages) == list(TABLE_9)
    assert [stage.data.dataset for stage in stages.values()] == list(TABLE_9)


@pytest.mark.parametrize("name", TABLE_9)
def test_slices_are_those_of_vtab_1k(name):
    dataset, val, test, _ = TABLE_9[name]
    task = vtab.TASKS[name]
    assert task.dataset == dataset
    assert vtab.slices(task, CATALOGUE[dataset]) == {
        "train800": "train[:800]",
        "val200": val,
        "train800val200": f"train[:800]+{val}",
        "test": test,
    }


def test_tasks_have_the_classes_of_the_tfds_builders(tmp_path):
    for name, (dataset, _, _, count) in TABLE_9.items():
        task, features = vtab.TASKS[name], tfds.builder(dataset, data_dir=tmp_path).info.features
        assert isinstance(features["image"], tfds.features.Image)
        if isinstance(task.label, vtab.LabelRule):
            assert len(task.label.classes) == len(set(task.label.classes)) == count
        else:
            assert features[task.label].num_classes == count
        assert task.num_classes == count
    kinds = tfds.builder("kitti", data_dir=tmp_path).info.features["objects"].feature["type"].names
    assert [kinds[k] for k in vtab.VEHICLES] == ["Car", "Van", "Truck"]


def scene(*depths: float) -> dict:
    """A record of clevr with objects at these depths."""
    places = [np.array([240, 160, depth], np.float32) for depth in depths]
    return {"objects": {"size": [np.int64(0)] * len(depths), "pixel_coords": places}}


def test_clevr_labels_are_the_count_and_the_nearest_depth():
    assert [vtab.clevr_count(scene(*range(9, 9 + n))) for n in (3, 4, 10)] == [0, 1, 7]
    assert vtab.clevr_distance(scene(12.0, 9.2, 10.5)) == 3
    found = [vtab.clevr_distance(scene(z, 50.0)) for z in (7, 8, 8.1, 8.5, 8.75, 9.5, 9.75, 10.5)]
    assert found == [0, 0, 1, 1, 2, 3, 4, 5]  # A depth on a threshold is below it.


def street(*objects: tuple[int, float]) -> dict:
    """A record of kitti with objects of these types at these depths."""
    places = [np.array([-3, 1, depth], np.float32) for _, depth in objects]
    return {"objects": {"type": [np.int64(kind) for kind, _ in objects], "location": places}}


def test_kitti_label_is_the_nearest_car_van_or_truck():
    car, van, truck, pedestrian, sitting, cyclist, tram, misc = range(8)
    assert [vtab.kitti_distance(street((k, 5.0))) for k in (car, van, truck)] == [0, 0, 0]
    others = (pedestrian, sitting, cyclist, tram, misc)
    assert {vtab.kitti_distance(street((k, 5.0))) for k in others} == {3}
    assert vtab.kitti_distance(street()) == 3
    assert vtab.kitti_distance(street((tram, 2.0), (truck, 30.0), (van, 12.0))) == 1
    found = [vtab.kitti_distance(street((car, z))) for z in (-2, 8, 8.5, 20, 20.5)]
    assert found == [0, 0, 1, 1, 2]  # A depth on a threshold is below it.


def test_dsprites_labels_are_sixteenths_of_the_range():
    places = [vtab.dsprites_location({"label_x_position": n}) for n in range(32)]
    turns = [vtab.dsprites_orientation({"label_orientation": n}) for n in range(40)]
    assert places == [math.floor(n / 2) for n in range(32)]
    assert turns == [math.floor(n / 2.5) for n in range(40)]
    assert turns[-1] == 15


# The builders' own features, in a process of its own; only the examples are ours. Red and green
# of a colour image are the number of its example.
PREPARE = """
import io, sys
import numpy as np, tensorflow_datasets as tfds
from PIL import Image

def png(pixels):
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, "PNG")
    file.seek(0)
    return file

def numbered(n):
    return png([[[n % 256, n // 256, 0]]])

def write(name, make, **counts):
    cls, first, splits = tfds.builder_cls(name), 0, {}
    for split, count in counts.items():
        splits[split] = [(n, make(n)) for n in range(first, first + count)]
        first += count
    cls._split_generators = lambda self, _: splits
    cls.url_infos = {}
    offline = tfds.download.DownloadConfig(try_download_gcs=False)
    builder = cls(data_dir=sys.argv[1], file_format="array_record")
    builder.download_and_prepare(download_config=offline)

def clevr(n):
    zeros, words = np.zeros(3, np.float32), {"question": "How many?", "answer": "3"}
    objects = [
        {"3d_coords": zeros, "color": 0, "material": 0, "rotation": 0.0, "shape": 0, "size": 0,
         "pixel_coords": np.float32([0, 0, 7.25 + 0.5 * (n % 7) + k])} for k in range(3 + n % 4)]
    return {"file_name": "", "image": numbered(n), "objects": objects, "question_answer": [words]}

def kitti(n):
    box = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    objects = [
        {"type": (n + k) % 8, "truncated": 0.0, "occluded": 0, "alpha": 0.0, "bbox": box,
         "dimensions": np.ones(3, np.float32), "location": np.float32([0, 0, 3.0 + n % 29 + k]),
         "rotation_y": 0.0} for k in range(n % 3)]
    return {"image": numbered(n), "image/file_name": "", "objects": objects}

def dsprites(n):
    names = ("orientation", "scale", "shape", "x_position", "y_position")
    labels = {f"label_{name}": 0 for name in names} | {f"value_{name}": 0.0 for name in names}
    labels |= {"label_x_position": n % 32, "label_orientation": n % 40}
    sprite = np.zeros((64, 64))
    sprite[n % 64] = 1
    return {"image": png(sprite)} | labels

def smallnorb(n):
    grey = np.full((96, 96), n % 256)
    labels = {"instance": 0, "label_category": 0, "label_lighting": 0}
    labels |= {"label_azimuth": n % 18, "label_elevation": n % 9}
    return {"image": png(grey), "image2": png(255 - grey)} | labels

def dtd(n):
    return {"file_name": "", "image": numbered(n), "label": n % 47}

def real(n):
    return {"file_name": "", "image": numbered(n), "original_label": 100 + n,
            "real_label": [[], [3], [999, 0, 2]][n % 3]}

write("clevr", clevr, train=2000, validation=30)
write("kitti", kitti, train=800, validation=200, test=30)
write("dsprites", dsprites, train=2000)
write("smallnorb", smallnorb, train=800, test=400)
write("dtd", dtd, train=5, validation=5, test=5)
write("imagenet2012_real", real, validation=7)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("tfds"))
    command = [sys.executable, "-c", PREPARE, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder


def open_vtab(folder: str, task: str, split: str):
    return open_split(Data(source="vtab", dataset=task, dir=folder), split)


def open_real(folder: str):
    data = Data(source="tfds", dataset="imagenet2012_real", dir=folder)
    return open_split(data, "validation")


def numbers(source) -> list[int]:
    """Which example each record is, by its pixels."""
    pixels = [decode(source[i]["image"])[0, 0] for i in range(len(source))]
    return [int(red) + 256 * int(green) for red, green, _ in pixels]


def in_tfds(folder: str, dataset: str, split: str) -> list[int]:
    """The same of a split as TFDS orders it."""
    records = tfds.builder(dataset, data_dir=folder).as_data_source(split=split)
    return [int(r) + 256 * int(g) for r, g, _ in (each["image"][0, 0] for each in records)]


def test_open_vtab_reads_the_first_800_images_and_200_of_the_rest(folder):
    train, test = (in_tfds(folder, "clevr", split) for split in ("train", "validation"))
    both = train[:800] + train[1800:]
    assert numbers(open_vtab(folder, "clevr_dist", "train800val200")) == both
    assert numbers(open_vtab(folder, "clevr_dist", "test")) == test
    train, val = (in_tfds(folder, "kitti", split) for split in ("train", "validation"))
    assert numbers(open_vtab(folder, "kitti_dist", "train800")) == train
    assert numbers(open_vtab(folder, "kitti_dist", "val200")) == val
    assert numbers(open_vtab(folder, "kitti_dist", "train800val200")) == train + val


def test_derived_labels_match_the_images(folder):
    clevr = open_vtab(folder, "clevr_count", "val200")
    numbered = numbers(clevr)
    assert list(clevr.labels) == [n % 4 for n in numbered]
    assert [clevr.classes[k] for k in (0, 7)] == ["3 objects", "10 objects"]
    near = open_vtab(folder, "clevr_dist", "val200")
    # Depths of 7.25 and 7.75 are the first class; each half further the next.
    assert list(near.labels) == [max(0, n % 7 - 1) for n in numbered]
    kitti = open_vtab(folder, "kitti_dist", "train800val200")
    expected = []
    for n in numbers(kitti):
        depths = [3 + n % 29 + k for k in range(n % 3) if (n + k) % 8 < 3]
        far = min(depths, default=None)
        expected.append(3 if far is None else 0 if far <= 8 else 1 if far <= 20 else 2)
    assert list(kitti.labels) == expected
    assert set(expected) == {0, 1, 2, 3}
    for source in (clevr, near, kitti):
        assert [source[i]["label"] for i in range(40)] == list(source.labels[:40])


def test_binary_source_is_black_and_white_in_three_channels(folder):
    loc, ori = (open_vtab(folder, f"dsprites_{what}", "val200") for what in ("loc", "ori"))
    assert len(loc) == 200
    for i in range(5):
        image = loc[i]["image"]
        assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)
        (row,) = np.flatnonzero(image[:, 0, 0])
        assert set(np.unique(image)) == {0, 255}
        assert (image[row] == 255).all()
        assert loc[i]["label"] == row % 32 // 2
    assert len(open_vtab(folder, "dsprites_ori", "test")) == 200
    assert set(ori.labels) == set(loc.labels) == set(range(16))
    assert loc.fingerprint() != ori.fingerprint()


def test_smallnorb_images_have_three_channels(folder):
    azimuth, elevation = (
        open_vtab(folder, f"smallnorb_{what}", "train800val200") for what in ("azim", "elev")
    )
    assert len(azimuth) == 1000
    image = decode(azimuth[0]["image"])
    assert (image.shape, image.dtype, len(np.unique(image))) == ((96, 96, 3), np.uint8, 1)
    assert list(elevation.labels) == [label % 9 for label in azimuth.labels]
    assert set(azimuth.labels) == set(range(18))
    # The first half of TFDS's test split is trained on, the second scored.
    records = tfds.builder("smallnorb", data_dir=folder).as_data_source(split="test")
    turns = [int(each["label_azimuth"]) for each in records]
    assert list(azimuth.labels[800:]) == turns[:200]
    assert list(open_vtab(folder, "smallnorb_azim", "test").labels) == turns[200:]


def test_open_both_with_dev_reads_train800_and_val200(folder):
    data = Data(
        source="vtab", dataset="smallnorb_azim", dir=folder, split="train800val200", dev=0.5
    )
    train, dev = open_both(data)
    assert (len(train), len(dev)) == (800, 200)
    expected = open_vtab(folder, "smallnorb_azim", "val200")
    assert dev.fingerprint() == expected.fingerprint()


def test_labels_are_read_without_decoding_an_image(folder, monkeypatch):
    tasks = ("clevr_count", "kitti_dist", "dsprites_ori", "smallnorb_azim")
    sources = [open_vtab(folder, task, "train800") for task in tasks]
    real = open_real(folder)

    def refuse(*_, **__):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(tfds.features.Image, "decode_example_np", refuse)
    monkeypatch.setattr(PIL.Image, "open", refuse)
    assert [len(source.labels) for source in sources] == [800] * 4
    assert len(real.label_sets) == 7
    with pytest.raises(DataError, match="an image was decoded"):
        decode(sources[0][0]["image"])


def test_vtab_sources_can_be_pickled(folder):
    for task in ("clevr_dist", "dsprites_loc", "smallnorb_elev"):
        source = open_vtab(folder, task, "val200")
        again = pickle.loads(pickle.dumps(source))
        assert again[3]["label"] == source[3]["label"]
        assert again.fingerprint() == source.fingerprint()


def test_label_sets_are_read_and_may_be_empty(folder):
    source = open_real(folder)
    sets = [[(), (3,), (999, 0, 2)][n % 3] for n in numbers(source)]
    assert source.label_sets == sets
    own = [source[i]["label"] for i in range(7)]
    assert source.has_own_labels
    assert list(source.labels) == own == [100 + n for n in numbers(source)]
    assert len(source.classes) == 1000
    assert pickle.loads(pickle.dumps(source)).label_sets == sets
    assert not hasattr(open_vtab(folder, "kitti_dist", "test"), "label_sets")


@pytest.mark.parametrize(
    ("task", "split", "words"),
    [
        ("clevr_cout", "test", r"clevr_cout is not a task .*Did you mean clevr_count\?$"),
        ("", "test", r"data\.dataset=\(empty\) is not a task of .*; expected one of caltech101"),
        ("kitti_dist", "train", r"has splits train800, val200, train800val200, test, not 'train'"),
        ("pets", "test", r"pets \(oxford_iiit_pet of TFDS\) is not under .*; prepare it once with"),
        ("dtd", "train800", r"train\[:800\] of dtd \(dtd of TFDS\) cannot be read \("),
    ],
)
def test_open_vtab_rejects_unknown_names_and_missing_data_in_one_line(folder, task, split, words):
    with pytest.raises(DataError, match=words) as caught:
        open_vtab(folder, task, split)
    assert "\n" not in str(caught.value)


def test_open_vtab_rejects_a_builder_with_other_classes(folder, monkeypatch):
    task = dataclasses.replace(vtab.TASKS["smallnorb_azim"], num_classes=9)
    monkeypatch.setitem(vtab.TASKS, "smallnorb_azim", task)
    with pytest.raises(DataError, match=r"has 18 classes; VTAB's has 9\.$"):
        open_vtab(folder, "smallnorb_azim", "test")
