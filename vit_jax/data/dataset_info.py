"""Data sets that papers train on: their classes and training examples."""

import re
from typing import NamedTuple


class Known(NamedTuple):
    """Classes, and examples of the split `train`."""

    num_classes: int
    num_examples: int


KNOWN = {
    # 303M: section 4.1. Classes are not in the paper; with these, the exaFLOPs of Table 6 come out.
    "jft": Known(18_291, 303_000_000),
    "jft3b": Known(29_593, 3_000_000_000),  # arXiv:2106.04560: "nearly 3B".
    "imagenet21k": Known(21_843, 14_197_122),  # Head of the published weights; image-net.org.
    "imagenet": Known(1000, 1_281_167),
    "imagenet2012": Known(1000, 1_281_167),  # These and below: catalogue of TensorFlow Datasets.
    "cifar10": Known(10, 50_000),
    "cifar100": Known(100, 50_000),
    "oxford_iiit_pet": Known(37, 3_680),
    "oxford_flowers102": Known(102, 1_020),
}


def find(*texts: str) -> str | None:
    """The name of the first known data set that stands as a word in one of the texts."""
    words = [word for text in texts for word in re.split(r"[^a-z0-9_]+", text.lower())]
    return next((word for word in words if word in KNOWN), None)


def share_of(split: str) -> float | int:
    """What a split such as `train[:98%]` takes of `train`: a share, or a number of examples.

    Anything but slices of percent or of examples counts as all of it.
    """
    found = re.fullmatch(r"\w+\[(\d*)(%?):(\d*)(%?)\]", split)
    if not found:
        return 1.0
    first, _, last, _ = found.groups()
    if "%" in split:
        return (int(last or 100) - int(first or 0)) / 100
    return int(last) - int(first or 0) if last else 1.0
