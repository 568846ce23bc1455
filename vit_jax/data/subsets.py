"""Random subsets of a source: with the same seed, a smaller one is part of a larger one."""

import dataclasses
import zlib

import numpy as np

from vit_jax.config.schema import Data
from vit_jax.data.mixture import Mixture
from vit_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Subset:
    """Examples of another source at given indices (a `Source`)."""

    source: object
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict:
        return self.source[int(self.indices[index])]

    def fingerprint(self) -> int:
        return zlib.crc32(self.indices.tobytes(), self.source.fingerprint())

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels[self.indices]

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))


def draw_subset(source, data: Data):
    """Returns the subset of `data.per_class`, `fraction` or `count` (Figure 4) by `subset_seed`.

    Examples keep their order. Without any of the three, the result is the source itself. A
    subset of a mixture is drawn from all its examples, and is a mixture. Raises DataError if
    there are too few examples.
    """
    if data.per_class is None and data.fraction is None and data.count is None:
        return source
    order = np.random.default_rng(data.subset_seed).permutation(len(source))
    if data.per_class is not None:
        indices = _first_of_each_class(source, order, data.per_class)
    else:
        total = data.count
        if total is None:
            total = max(1, round(data.fraction * len(source)))
        if total > len(source):
            raise DataError(f"data.count is {total}, but the split has {len(source)} examples.")
        indices = order[:total]
    return _take(source, np.sort(indices))


def split_off_dev(source, data: Data) -> tuple:
    """Returns the source without a random share `data.dev` of its examples, and this share."""
    order = np.random.default_rng((data.subset_seed, 1)).permutation(len(source))
    cut = max(1, round(data.dev * len(source)))
    if cut >= len(source):
        raise DataError(
            f"data.dev is {data.dev}, but {len(source)} training examples are too few to split."
        )
    return _take(source, np.sort(order[cut:])), _take(source, np.sort(order[:cut]))


def _first_of_each_class(source, order: np.ndarray, count: int) -> np.ndarray:
    """Returns the first `count` indices of each class in `order`."""
    if not source.classes:
        raise DataError(
            f"data.per_class is {count}, but the data has no classes; use data.count or "
            "data.fraction."
        )
    labels = source.labels[order]
    sizes = np.bincount(labels, minlength=len(source.classes))
    if sizes.min() < count:
        rarest = int(sizes.argmin())
        raise DataError(
            f"data.per_class is {count}, but class {source.classes[rarest]!r} has "
            f"{sizes[rarest]} examples."
        )
    by_class = np.argsort(labels, kind="stable")
    firsts = (np.cumsum(sizes) - sizes)[:, None] + np.arange(count)
    return order[by_class[firsts.ravel()]]


def _take(source, indices: np.ndarray):
    """Returns the examples at ascending indices; those of a mixture as a mixture of subsets."""
    if not isinstance(source, Mixture):
        return Subset(source, indices)
    ends = source.ends
    parts = np.split(indices, np.searchsorted(indices, ends[:-1]))
    for part, member in zip(parts, source.sources):
        if not len(part):
            raise DataError(
                f"one data set of data.mix (its first example is {member.name(0)}) has no example "
                "in the subset; use a larger subset."
            )
    starts = ends - np.array(source.sizes)
    subsets = (
        Subset(member, part - start) for member, part, start in zip(source.sources, parts, starts)
    )
    return Mixture(tuple(subsets), source.shares)
