"""Conversion of labels from one list of class names to another."""

import dataclasses
import functools

import numpy as np

from vit_jax.errors import DataError, nearest


@dataclasses.dataclass(frozen=True)
class Relabelled:
    """A source with labels of another list of classes (a `Source`)."""

    source: object
    classes: tuple[str, ...]
    # Label here of each class of the source; None looks the class names up.
    numbers: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        record, num_classes = self.source[index], len(self.source.classes)
        label = record["label"]
        if not 0 <= label < num_classes:
            raise DataError(
                f"{self.name(index)}: label {label} is out of range [0, {num_classes})."
            )
        return record | {"label": int(self.table[label])}

    @functools.cached_property
    def table(self) -> np.ndarray:
        """Label here of each label of the source."""
        if self.numbers is not None:
            return np.array(self.numbers, np.int64)
        number = {title: k for k, title in enumerate(self.classes)}
        return np.array([number[title] for title in self.source.classes], np.int64)

    @property
    def labels(self) -> np.ndarray:
        return self.table[self.source.labels]

    def fingerprint(self) -> int:
        return self.source.fingerprint()

    def name(self, index: int) -> str:
        return self.source.name(index)


def relabelled(source, classes: tuple[str, ...]):
    """Returns the source with labels in a list of classes; the same object if they are equal.

    Raises DataError for a class that is not in the list.
    """
    if source.classes == classes:
        return source
    known = set(classes)
    for title in source.classes:
        if title not in known:
            first = f" (first example {source.name(0)})" if len(source) else ""
            raise DataError(
                f"class {title!r} of the data{first} is not among the {len(classes)} classes of "
                f"training.{nearest(title, classes)}"
            )
    return Relabelled(source, classes)


def union(*lists: tuple[str, ...]) -> tuple[str, ...]:
    """Returns all class names in the order of first occurrence."""
    return tuple(dict.fromkeys(title for titles in lists for title in titles))
