"""Copies are known again, other photos are not."""

import io

import numpy as np
import pytest
from PIL import Image

from vit_jax.prepare import duplicates


def crops(photos) -> list[np.ndarray]:
    """Crops of two photos that do not overlap."""
    places = [(top, left) for top in (0, 140, 280) for left in (0, 160, 320, 480)]
    return [
        photos[i % 2][top : top + 130, left : left + 150] for i, (top, left) in enumerate(places)
    ]


def reencoded(image, size=1.0, quality=75, format="JPEG") -> np.ndarray:
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((round(width * size), round(height * size)))
    file = io.BytesIO()
    small.save(file, format, quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.fixture(scope="module")
def index(photos):
    named = enumerate(crops(photos))
    return duplicates.build_index((f"{i:02}", duplicates.signature(crop)) for i, crop in named)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("quality", [60, 95])
@pytest.mark.parametrize("size", [0.5, 1.0, 1.6])
def test_a_copy_resized_and_encoded_again_is_found(index, photos, format, quality, size):
    for i, crop in enumerate(crops(photos)):
        assert index.find(reencoded(crop, size, quality, format)) == f"{i:02}"


def test_another_photo_is_not_found(index, photos):
    for i in range(40):
        top, left = 5 + 7 * i, 60 + 11 * i  # Away from all the crops' places.
        other = photos[i % 2][::-1][top : top + 90, left : left + 90]
        assert index.find(np.ascontiguousarray(other)) is None


def test_a_grey_copy_is_found(index, photos):
    grey = Image.fromarray(crops(photos)[3]).convert("L").convert("RGB")
    assert index.find(np.asarray(grey)) == "03"


def test_digits_of_one_class_are_no_copies_of_each_other():
    from sklearn.datasets import load_digits

    images = np.round(load_digits().images[:400] * 255 / 16).astype(np.uint8)
    images = np.repeat(images[..., None], 3, axis=-1)
    index = duplicates.build_index(
        (str(i), duplicates.signature(image)) for i, image in enumerate(images[:200])
    )
    assert [index.find(image) for image in images[200:]] == [None] * 200
    assert index.find(images[7]) == "7"


def test_nothing_is_a_copy_of_nothing(photos):
    assert duplicates.build_index([]).find(photos[0]) is None


def test_an_index_is_the_same_after_it_was_saved(index, photos, tmp_path):
    with open(tmp_path / "index.npz", "wb") as file:
        index.save(file)
    again = duplicates.load_index(tmp_path / "index.npz")
    assert again.find(crops(photos)[5]) == "05"
    assert list(again.names) == list(index.names)
