"""benchmarks/few_labels.py: the images of each option, and the table."""

import gzip

import numpy as np
import pytest

from tests.support.runs import ROOT
from vit_jax.config.schema import Data
from vit_jax.data.decode import decode
from vit_jax.data.sources import ArraySource, open_split


@pytest.fixture
def few_labels(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import few_labels

    return few_labels


def test_files_of_fashion_mnist_become_class_folders(few_labels, tmp_path, monkeypatch):
    monkeypatch.setattr(few_labels, "NUM_TEST", 20)
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 28, 28), np.uint8)
    labels = np.tile(np.arange(10, dtype=np.uint8), (2, 4))
    for i, prefix in enumerate(("train", "t10k")):
        for name, header, array in (("images-idx3", 16, images), ("labels-idx1", 8, labels)):
            with gzip.open(tmp_path / f"{prefix}-{name}-ubyte.gz", "wb") as file:
                file.write(bytes(header) + array[i].tobytes())

    folder = few_labels.write_folders(few_labels.fashion(tmp_path, 30), tmp_path / "out")

    for split, i, count in (("train", 0, 30), ("val", 1, 20)):
        source = open_split(Data(source="folder", dir=str(folder)), split)
        assert len(source) == count
        for k in range(count):
            position = int(source.name(k).rpartition("/")[2].removesuffix(".png"))
            pixels = decode(source[k]["image"])
            assert (pixels == images[i, position, :, :, None]).all()
            title = source.classes[source.labels[k]]
            assert title == few_labels.TITLES[labels[i, position]]


def test_held_out_images_are_a_quarter_of_the_training_images(few_labels):
    train, dev = few_labels.held_out().values()
    names = [{side.name(i) for i in range(len(side))} for side in (train, dev)]
    assert [len(each) for each in names] == [3000, 1000]
    source = open_split(Data(source="mnist5k"), "train")
    assert names[0] | names[1] == {source.name(i) for i in range(len(source))}


def test_pixels_of_class_folders_are_scored_as_features(few_labels, tmp_path):
    labels = np.repeat(np.arange(10), 12)
    random = np.random.default_rng(0)
    patterns = random.integers(0, 236, (10, 4, 4, 1))
    noise = random.integers(0, 20, (120, 4, 4, 1))
    pixels = (patterns[labels] + noise).astype(np.uint8).repeat(3, axis=-1)
    source = ArraySource(pixels, labels, tuple("0123456789"))
    few_labels.write_folders({"train": source, "val": source}, tmp_path)
    scores = few_labels.raw_pixels(str(tmp_path))
    assert scores == {"20nn": 1.0, "10shot": 1.0}


def test_gains_are_paired_by_seed(few_labels):
    none = [{"top1": top1, "seconds": 10.0} for top1 in (0.60, 0.70)]
    frozen = {"20nn": 0.9, "10shot": 0.5}
    mae = [{"top1": top1, "seconds": s} | frozen for top1, s in ((0.80, 90.0), (0.88, 99.0))]
    lines = few_labels.markdown({"none": none, "mae": mae}, {"20nn": 0.94, "10shot": 0.7})
    assert lines.splitlines()[2:] == [
        "| 10 labels per class, from scratch | 65.0 ± 5.0 |  | 60.0, 70.0 |  |  | 10-10 |",
        "| 10 labels per class, after MAE | 84.0 ± 4.0 | 19.0 ± 1.0 | 80.0, 88.0 | 90.0 | 50.0 "
        "| 90-99 |",
        "| raw pixels | | | | 94.0 | 70.0 | |",
    ]
