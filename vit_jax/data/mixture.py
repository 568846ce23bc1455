"""Several data sets as one stream, each with its share."""

import dataclasses
import functools
import zlib

import numpy as np

from vit_jax.data.labels import relabelled, union


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Records of several sources with equal classes, one source after the other.

    Record `i` of source `s` has the index `sum(sizes[:s]) + i`. How often a source's turn comes
    is for the loader to arrange, by `sizes` and `shares`.
    """

    sources: tuple
    shares: tuple[int, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.sources[0].classes

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """Records of each source."""
        return tuple(map(len, self.sources))

    @functools.cached_property
    def ends(self) -> np.ndarray:
        """The index after the last of each source."""
        return np.cumsum(self.sizes)

    def _find(self, index: int) -> tuple[object, int]:
        """The source of a record, and the record's index there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[which], index - int(self.ends[which]) + self.sizes[which]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict:
        source, within = self._find(index)
        return source[within]

    @property
    def labels(self) -> np.ndarray:
        return np.concatenate([source.labels for source in self.sources])

    def fingerprint(self) -> int:
        parts = [(source.fingerprint(), len(source)) for source in self.sources]
        return zlib.crc32(repr((parts, self.shares, self.classes)).encode(errors="replace"))

    def name(self, index: int) -> str:
        source, within = self._find(index)
        return source.name(within)


def mix(sources, shares) -> Mixture:
    """A mixture whose classes are those of all sources, in the order they first appear in."""
    classes = union(*(source.classes for source in sources))
    return Mixture(tuple(relabelled(source, classes) for source in sources), tuple(shares))
