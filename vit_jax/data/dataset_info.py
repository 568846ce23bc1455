"""Numbers of classes and training examples of well-known data sets."""

import re
from typing import NamedTuple


class DatasetInfo(NamedTuple):
    """Numbers of classes, and of examples of the split `train`."""

    num_classes: int
    num_examples: int


DATASETS = {
    # 303M: section 4.1. The paper does not give the classes; these fit the exaFLOPs of Table 6.
    "jft": DatasetInfo(18_291, 303_000_000),
    "jft3b": DatasetInfo(29_593, 3_000_000_000),  # arXiv:2106.04560: "nearly 3B".
    "imagenet21k": DatasetInfo(21_843, 14_197_122),  # Head of the published weights; image-net.org.
    "imagenet": DatasetInfo(1000, 1_281_167),
    "imagenet2012": DatasetInfo(1000, 1_281_167),  # From here on: TFDS catalogue.
    "cifar10": DatasetInfo(10, 50_000),
    "cifar100": DatasetInfo(100, 50_000),
    "oxford_iiit_pet": DatasetInfo(37, 3_680),
    "oxford_flowers102": DatasetInfo(102, 1_020),
}


def find_dataset(*texts: str) -> str | None:
    """Returns the first name of DATASETS that is a word in one of the texts."""
    words = [word for text in texts for word in re.split(r"[^a-z0-9_]+", text.lower())]
    return next((word for word in words if word in DATASETS), None)


def slice_size(split: str) -> float | int:
    """Returns the size of a slice such as `train[:98%]`: a share, or a number of examples.

    It is 1.0, all of the split, for anything but one slice by per cent or by examples.
    """
    match = re.fullmatch(r"\w+\[(\d*)(%?):(\d*)(%?)\]", split)
    if not match:
        return 1.0
    first, _, last, _ = match.groups()
    if "%" in split:
        return (int(last or 100) - int(first or 0)) / 100
    return int(last) - int(first or 0) if last else 1.0
