"""VTAB-1k (arXiv:1910.04867): the 19 tasks of Table 9, each with 1,000 training images.

Splits and label rules are those of google-research/task_adaptation, which used kitti 3.1.0 and
oxford_iiit_pet 3 of TFDS. This module reads the versions of the installed TFDS, whose release
notes list a newer devkit of kitti (3.2.0) and repaired images of pets (4.0.0).
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping

import numpy as np

from vit_jax.config.schema import Data
from vit_jax.data.array_record import TfdsSource, open_builder, read_split
from vit_jax.data.decode import decode
from vit_jax.errors import DataError, nearest

SPLITS = ("train800", "val200", "train800val200", "test")


@dataclasses.dataclass(frozen=True)
class LabelRule:
    """Classes that a data set does not have, computed from other features of a record."""

    classes: tuple[str, ...]
    label_of: Callable[[dict], int]


def clevr_count(record: dict) -> int:
    """Returns the number of objects, minus the 3 of the smallest scenes."""
    return len(record["objects"]["size"]) - 3


def clevr_distance(record: dict) -> int:
    """Returns the interval of the closest object, by the depth in its pixel coordinates."""
    depths = [point[2] for point in record["objects"]["pixel_coords"]]
    return _interval(min(depths), (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0))


def dsprites_location(record: dict) -> int:
    """Returns the class of one of 32 positions along x, two per class."""
    return int(record["label_x_position"]) * 16 // 32


def dsprites_orientation(record: dict) -> int:
    """Returns the class of one of 40 orientations, two or three per class."""
    return int(record["label_orientation"]) * 16 // 40


VEHICLES = (0, 1, 2)  # Object types of kitti: car, van, truck; not tram, cyclist or misc.


def kitti_distance(record: dict) -> int:
    """Returns the interval of the closest vehicle, in metres along the axis of the camera.

    Without a vehicle, it is the last class.
    """
    objects = record["objects"]
    locations = zip(objects["type"], objects["location"], strict=True)
    depths = [location[2] for kind, location in locations if kind in VEHICLES]
    return _interval(min(depths, default=1000.0), (-100.0, 8.0, 20.0, 999.0))


def _interval(value: float, bounds: tuple[float, ...]) -> int:
    """Returns the k with bounds[k] < value <= bounds[k + 1]."""
    return int(np.searchsorted(bounds, value, side="left")) - 1


COUNT = LabelRule(tuple(f"{count} objects" for count in range(3, 11)), clevr_count)
CLOSEST_OBJECT = LabelRule(
    ("up to 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "beyond 10"), clevr_distance
)
LOCATION = LabelRule(tuple(f"x in part {part} of 16" for part in range(1, 17)), dsprites_location)
ORIENTATION = LabelRule(
    tuple(f"orientation in part {part} of 16" for part in range(1, 17)), dsprites_orientation
)
CLOSEST_VEHICLE = LabelRule(
    ("vehicle within 8 m", "vehicle at 8 to 20 m", "vehicle beyond 20 m", "no vehicle"),
    kitti_distance,
)


@dataclasses.dataclass(frozen=True)
class VtabTask:
    """A column of Table 9."""

    name: str
    dataset: str  # TFDS name.
    num_classes: int
    val: tuple[str, int]  # Split of val200, and the per cent of it after which they begin.
    test: str
    label: str | LabelRule = "label"  # A feature with class names, or a rule.
    is_binary: bool = False  # Pixels are 0 and 1.


VALIDATION = ("validation", 0)
GROUPS = {  # In the order of Table 9.
    "natural": (
        VtabTask("caltech101", "caltech101", 102, ("train", 90), "test"),
        VtabTask("cifar100", "cifar100", 100, ("train", 90), "test"),
        VtabTask("dtd", "dtd", 47, VALIDATION, "test"),
        VtabTask("flowers", "oxford_flowers102", 102, VALIDATION, "test"),
        VtabTask("pets", "oxford_iiit_pet", 37, ("train", 80), "test"),
        VtabTask("sun397", "sun397/tfds", 397, VALIDATION, "test"),
        VtabTask("svhn", "svhn_cropped", 10, ("train", 90), "test"),
    ),
    "specialized": (
        VtabTask("camelyon", "patch_camelyon", 2, VALIDATION, "test"),
        VtabTask("eurosat", "eurosat/rgb", 10, ("train", 60), "train[80%:]"),
        VtabTask("resisc45", "resisc45", 45, ("train", 60), "train[80%:]"),
        VtabTask(
            "retinopathy", "diabetic_retinopathy_detection/btgraham-300", 5, VALIDATION, "test"
        ),
    ),
    "structured": (
        VtabTask("clevr_count", "clevr", 8, ("train", 90), "validation", COUNT),
        VtabTask("clevr_dist", "clevr", 6, ("train", 90), "validation", CLOSEST_OBJECT),
        VtabTask("dmlab", "dmlab", 6, VALIDATION, "test"),
        VtabTask("dsprites_loc", "dsprites", 16, ("train", 80), "train[90%:]", LOCATION, True),
        VtabTask("dsprites_ori", "dsprites", 16, ("train", 80), "train[90%:]", ORIENTATION, True),
        VtabTask("kitti_dist", "kitti", 4, VALIDATION, "test", CLOSEST_VEHICLE),
        VtabTask("smallnorb_azim", "smallnorb", 18, ("test", 0), "test[50%:]", "label_azimuth"),
        VtabTask("smallnorb_elev", "smallnorb", 9, ("test", 0), "test[50%:]", "label_elevation"),
    ),
}
TASKS = {task.name: task for tasks in GROUPS.values() for task in tasks}


def slices(task: VtabTask, sizes: Mapping[str, int]) -> dict[str, str]:
    """Returns the TFDS slice of each of SPLITS, given the sizes of the splits of TFDS."""
    split, percent = task.val
    first = sizes.get(split, 0) * percent // 100
    train, val = "train[:800]", f"{split}[{first}:{first + 200}]"
    return dict(zip(SPLITS, (train, val, f"{train}+{val}", task.test), strict=True))


@dataclasses.dataclass(frozen=True)
class BinarySource(TfdsSource):
    """A split whose pixels are 0 and 1, shown as black and white (a `Source`)."""

    def __getitem__(self, index: int) -> dict:
        record = super().__getitem__(index)
        white = decode(record["image"]) > 0
        return record | {"image": np.where(white, np.uint8(255), np.uint8(0))}


def open_vtab(data: Data, split: str) -> TfdsSource:
    """Opens one of SPLITS of the task `data.dataset`, from the data folder `data.dir` of TFDS.

    Raises DataError in one line for an unknown task or split, and for missing data.
    """
    name = data.dataset
    if name not in TASKS:
        raise DataError(
            f"data.dataset={name or '(empty)'} is not a task of data.source=vtab; expected one of "
            f"{', '.join(TASKS)}.{nearest(name, TASKS)}"
        )
    if split not in SPLITS:
        raise DataError(f"data.source=vtab has splits {', '.join(SPLITS)}, not {split!r}.")
    task = TASKS[name]
    title = f"data.dataset={name} ({task.dataset} of TFDS)"
    builder, command = open_builder(task.dataset, data.dir, title)
    sizes = {key: info.num_examples for key, info in builder.info.splits.items()}
    part = slices(task, sizes)[split]
    records = read_split(builder, part, title, command)
    if isinstance(task.label, LabelRule):
        classes, label_of = task.label.classes, task.label.label_of
    else:
        classes = tuple(builder.info.features[task.label].names)
        label_of = operator.itemgetter(task.label)
    if len(classes) != task.num_classes:
        raise DataError(f"{title} has {len(classes)} classes; VTAB's has {task.num_classes}.")
    kind = BinarySource if task.is_binary else TfdsSource
    return kind(records, "image", label_of, classes, f"{builder.info.full_name}/{part}")
