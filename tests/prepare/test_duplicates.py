"""Tests of near-duplicate detection: copies are found, other photos are not."""

import io

import numpy as np
import pytest
from PIL import Image

from vit_jax.prepare import duplicates


def crops(photos) -> list[np.ndarray]:
    """Returns crops of two photos that do not overlap."""
    corners = [(top, left) for top in (0, 140, 280) for left in (0, 160, 320, 480)]
    return [
        photos[i % 2][top : top + 130, left : left + 150] for i, (top, left) in enumerate(corners)
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
    return duplicates.build_index(
        (f"{i:02}", duplicates.compute_signature(crop)) for i, crop in named
    )


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("quality", [60, 95])
@pytest.mark.parametrize("size", [0.5, 1.0, 1.6])
def test_find_duplicate_finds_resized_and_reencoded_copies(index, photos, format, quality, size):
    for i, crop in enumerate(crops(photos)):
        assert index.find_duplicate(reencoded(crop, size, quality, format)) == f"{i:02}"


def test_find_duplicate_of_another_photo_is_none(index, photos):
    for i in range(40):
        top, left = 5 + 7 * i, 60 + 11 * i  # Other corners than those of `crops`.
        other = photos[i % 2][::-1][top : top + 90, left : left + 90]
        assert index.find_duplicate(np.ascontiguousarray(other)) is None


def test_find_duplicate_finds_a_grey_copy(index, photos):
    grey = Image.fromarray(crops(photos)[3]).convert("L").convert("RGB")
    assert index.find_duplicate(np.asarray(grey)) == "03"


def test_find_duplicate_of_another_digit_is_none():
    from sklearn.datasets import load_digits

    images = np.round(load_digits().images[:400] * 255 / 16).astype(np.uint8)
    images = np.repeat(images[..., None], 3, axis=-1)
    index = duplicates.build_index(
        (str(i), duplicates.compute_signature(image)) for i, image in enumerate(images[:200])
    )
    assert [index.find_duplicate(image) for image in images[200:]] == [None] * 200
    assert index.find_duplicate(images[7]) == "7"


def test_find_duplicate_in_an_empty_index_is_none(photos):
    assert duplicates.build_index([]).find_duplicate(photos[0]) is None


def test_load_index_returns_the_saved_index(index, photos, tmp_path):
    with open(tmp_path / "index.npz", "wb") as file:
        index.save(file)
    loaded = duplicates.load_index(tmp_path / "index.npz")
    assert loaded.find_duplicate(crops(photos)[5]) == "05"
    assert list(loaded.names) == list(index.names)
