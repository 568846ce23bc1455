"""Several data sets as one stream, in given proportions."""

import dataclasses
import functools
import zlib

import numpy as np

from vit_jax.data.labels import relabelled, union


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Concatenated examples of several sources with the same classes (a `Source`).

    Example `i` of source `s` has the index `sum(sizes[:s]) + i`. The loader draws from the
    sources in proportion to `shares`.
    """

    sources: tuple
    shares: tuple[int, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.sources[0].classes

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of examples of each source."""
        return tuple(map(len, self.sources))

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """Index after the last example of each source."""
        return np.cumsum(self.sizes)

    def _locate(self, index: int) -> tuple[object, int]:
        """Returns the source of an example, and the index of the example in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[which], index - int(self.ends[which]) + self.sizes[which]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict:
        source, index_in_source = self._locate(index)
        return source[index_in_source]

    @property
    def labels(self) -> np.ndarray:
        return np.concatenate([source.labels for source in self.sources])

    def fingerprint(self) -> int:
        parts = [(source.fingerprint(), len(source)) for source in self.sources]
        return zlib.crc32(repr((parts, self.shares, self.classes)).encode(errors="replace"))

    def name(self, index: int) -> str:
        source, index_in_source = self._locate(index)
        return source.name(index_in_source)


def mix(sources, shares) -> Mixture:
    """Returns a mixture with the classes of all sources, in the order of first occurrence."""
    classes = union(*(source.classes for source in sources))
    return Mixture(tuple(relabelled(source, classes) for source in sources), tuple(shares))
