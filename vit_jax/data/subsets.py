"""Seeded draws from a source, the smaller ones within the larger ones of the same seed."""

import dataclasses
import zlib

import numpy as np

from vit_jax.config.schema import Data
from vit_jax.data.mixture import Mixture
from vit_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some records of another source, in a given order."""

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


def draw(
    source,
    *,
    per_class: int | None = Data.per_class,
    fraction: float | None = Data.fraction,
    count: int | None = Data.count,
    seed: int = Data.subset_seed,
):
    """Records drawn at random (Figure 4's subsets), in the source's order.

    Args:
      per_class: so many of each class.
      fraction, count: a share of all records, or so many, whatever their classes.
      seed: another seed is another draw; a smaller draw lies within a larger one of its seed.

    One of the three may be given; with none the source itself comes back. A mixture stays one:
    the draw is from all its records together. Raises DataError where there are too few.
    """
    if per_class is None and fraction is None and count is None:
        return source
    order = np.random.default_rng(seed).permutation(len(source))
    if per_class is not None:
        picked = _first_of_each_class(source, order, per_class)
    else:
        total = count if count is not None else max(1, round(fraction * len(source)))
        if total > len(source):
            raise DataError(f"data.count is {total}, but the split has {len(source)} examples.")
        picked = order[:total]
    return _take(source, np.sort(picked))


def hold_out(source, share: float, seed: int = Data.subset_seed) -> tuple:
    """The source without a share of its examples, drawn at random, and that share (Table 4)."""
    order = np.random.default_rng((seed, 1)).permutation(len(source))
    cut = max(1, round(share * len(source)))
    if cut >= len(source):
        raise DataError(f"{len(source)} training examples are too few to hold some out.")
    return _take(source, np.sort(order[cut:])), _take(source, np.sort(order[:cut]))


def _first_of_each_class(source, order: np.ndarray, count: int) -> np.ndarray:
    """Of the places in `order`, the first `count` of every class."""
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
    """The records of these ascending indices; of a mixture, a mixture of subsets."""
    if not isinstance(source, Mixture):
        return Subset(source, indices)
    ends = source.ends
    parts = np.split(indices, np.searchsorted(indices, ends[:-1]))
    for part, whole in zip(parts, source.sources):
        if not len(part):
            raise DataError(f"the subset has no example of the data.mix source of {whole.name(0)}.")
    starts = ends - np.array(source.sizes)
    taken = (
        Subset(whole, part - start) for whole, part, start in zip(source.sources, parts, starts)
    )
    return Mixture(tuple(taken), source.shares)
