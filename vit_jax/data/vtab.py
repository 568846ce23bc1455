"""VTAB-1k (arXiv:1910.04867): the 19 tasks of Table 9, each with 1,000 training images.

Splits and label rules are those of google-research/task_adaptation, which had kitti 3.1.0 and
oxford_iiit_pet 3 of TFDS; what is read is the version that the installed TFDS prepares. The
release notes since name a newer devkit of kitti (3.2.0), and repaired images of pets (4.0.0).
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping

import numpy as np

from vit_jax.data.array_record import TfdsSource, open_builder, read_split
from vit_jax.data.decode import decode
from vit_jax.errors import DataError, nearest

SPLITS = ("train800", "val200", "train800val200", "test")


@dataclasses.dataclass(frozen=True)
class Rule:
    """Classes that a data set does not name, made of a record's other features."""

    classes: tuple[str, ...]
    label_of: Callable[[dict], int]


def clevr_count(record: dict) -> int:
    """Objects; no scene has fewer than 3."""
    return len(record["objects"]["size"]) - 3


def clevr_distance(record: dict) -> int:
    """Of the closest object, by the depth in its pixel coordinates."""
    depths = [place[2] for place in record["objects"]["pixel_coords"]]
    return _interval(min(depths), (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0))


def dsprites_location(record: dict) -> int:
    """32 positions along x, two to a class."""
    return int(record["label_x_position"]) * 16 // 32


def dsprites_orientation(record: dict) -> int:
    """40 orientations, two or three to a class."""
    return int(record["label_orientation"]) * 16 // 40


VEHICLES = (0, 1, 2)  # Types of kitti's objects: car, van, truck; not tram, cyclist or misc.


def kitti_distance(record: dict) -> int:
    """Of the closest vehicle, in metres along the camera's axis; without one, the last class."""
    objects = record["objects"]
    places = zip(objects["type"], objects["location"], strict=True)
    depths = [place[2] for kind, place in places if kind in VEHICLES]
    return _interval(min(depths, default=1000.0), (-100.0, 8.0, 20.0, 999.0))


def _interval(value: float, bounds: tuple[float, ...]) -> int:
    """The k with bounds[k] < value <= bounds[k + 1]."""
    return int(np.searchsorted(bounds, value, side="left")) - 1


COUNT = Rule(tuple(f"{count} objects" for count in range(3, 11)), clevr_count)
CLOSEST_OBJECT = Rule(
    ("up to 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "beyond 10"), clevr_distance
)
LOCATION = Rule(tuple(f"x in part {part} of 16" for part in range(1, 17)), dsprites_location)
ORIENTATION = Rule(
    tuple(f"orientation in part {part} of 16" for part in range(1, 17)), dsprites_orientation
)
CLOSEST_VEHICLE = Rule(
    ("vehicle within 8 m", "vehicle at 8 to 20 m", "vehicle beyond 20 m", "no vehicle"),
    kitti_distance,
)


@dataclasses.dataclass(frozen=True)
class Task:
    """A column of Table 9."""

    name: str
    dataset: str  # Of TFDS.
    num_classes: int
    val: tuple[str, int]  # val200 are the next 200 after this per cent of this split.
    test: str
    label: str | Rule = "label"  # A feature that has class names, or a rule.
    is_binary: bool = False  # Pixels are 0 and 1.


VALIDATION = ("validation", 0)
GROUPS = {  # In the order of Table 9.
    "natural": (
        Task("caltech101", "caltech101", 102, ("train", 90), "test"),
        Task("cifar100", "cifar100", 100, ("train", 90), "test"),
        Task("dtd", "dtd", 47, VALIDATION, "test"),
        Task("flowers", "oxford_flowers102", 102, VALIDATION, "test"),
        Task("pets", "oxford_iiit_pet", 37, ("train", 80), "test"),
        Task("sun397", "sun397/tfds", 397, VALIDATION, "test"),
        Task("svhn", "svhn_cropped", 10, ("train", 90), "test"),
    ),
    "specialized": (
        Task("camelyon", "patch_camelyon", 2, VALIDATION, "test"),
        Task("eurosat", "eurosat/rgb", 10, ("train", 60), "train[80%:]"),
        Task("resisc45", "resisc45", 45, ("train", 60), "train[80%:]"),
        Task("retinopathy", "diabetic_retinopathy_detection/btgraham-300", 5, VALIDATION, "test"),
    ),
    "structured": (
        Task("clevr_count", "clevr", 8, ("train", 90), "validation", COUNT),
        Task("clevr_dist", "clevr", 6, ("train", 90), "validation", CLOSEST_OBJECT),
        Task("dmlab", "dmlab", 6, VALIDATION, "test"),
        Task("dsprites_loc", "dsprites", 16, ("train", 80), "train[90%:]", LOCATION, True),
        Task("dsprites_ori", "dsprites", 16, ("train", 80), "train[90%:]", ORIENTATION, True),
        Task("kitti_dist", "kitti", 4, VALIDATION, "test", CLOSEST_VEHICLE),
        Task("smallnorb_azim", "smallnorb", 18, ("test", 0), "test[50%:]", "label_azimuth"),
        Task("smallnorb_elev", "smallnorb", 9, ("test", 0), "test[50%:]", "label_elevation"),
    ),
}
TASKS = {task.name: task for tasks in GROUPS.values() for task in tasks}


def slices(task: Task, sizes: Mapping[str, int]) -> dict[str, str]:
    """Each of SPLITS as TFDS writes it, given how many examples TFDS's own splits have."""
    split, percent = task.val
    first = sizes.get(split, 0) * percent // 100
    train, val = "train[:800]", f"{split}[{first}:{first + 200}]"
    return dict(zip(SPLITS, (train, val, f"{train}+{val}", task.test), strict=True))


@dataclasses.dataclass(frozen=True)
class BinarySource(TfdsSource):
    """A split of images whose pixels are 0 and 1, as black and white."""

    def __getitem__(self, index: int) -> dict:
        record = super().__getitem__(index)
        white = decode(record["image"]) > 0
        return record | {"image": np.where(white, np.uint8(255), np.uint8(0))}


def open_vtab(name: str, split: str, dir: str) -> TfdsSource:
    """One of SPLITS of a task, from TFDS's folder of data sets.

    Raises DataError, in one line, for a name that is none and for data that is not there.
    """
    if name not in TASKS:
        raise DataError(
            f"data.dataset={name or '(empty)'} is no task of data.source=vtab; choose from "
            f"{', '.join(TASKS)}.{nearest(name, TASKS)}"
        )
    if split not in SPLITS:
        raise DataError(f"data.source=vtab has splits {', '.join(SPLITS)}, not {split!r}.")
    task = TASKS[name]
    title = f"data.dataset={name} ({task.dataset} of TFDS)"
    builder, how = open_builder(task.dataset, dir, title)
    sizes = {key: info.num_examples for key, info in builder.info.splits.items()}
    part = slices(task, sizes)[split]
    records = read_split(builder, part, title, how)
    if isinstance(task.label, Rule):
        classes, label_of = task.label.classes, task.label.label_of
    else:
        classes = tuple(builder.info.features[task.label].names)
        label_of = operator.itemgetter(task.label)
    if len(classes) != task.num_classes:
        raise DataError(f"{title} has {len(classes)} classes; VTAB's has {task.num_classes}.")
    kind = BinarySource if task.is_binary else TfdsSource
    return kind(records, "image", label_of, classes, f"{builder.info.full_name}/{part}")
