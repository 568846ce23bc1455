"""Exact duplicates (images with equal bytes) in one class, across classes and across splits.

They are kept, and listed: an image in several classes has wrong labels, and one in several splits
leaks from training into a score.
"""

import collections
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from vit_jax.atomic_io import to_json, write_atomically
from vit_jax.data import manifest

DIGEST = 16  # Bytes of the SHA-256 that are compared; two of 10^9 images agree by chance: 10^-21.


def find_firsts(records: Iterable[dict]) -> dict[int, int]:
    """Returns row -> row of the first equal image, for the images that equal an earlier one.

    Rows count the images that are kept, in the order of the manifest.
    """
    digests = bytearray()
    for record in records:
        if "reason" not in record:
            digests += bytes.fromhex(record["sha256"])[:DIGEST]
    keys = np.frombuffer(digests, np.uint64).reshape(-1, DIGEST // 8)
    order = np.lexsort(keys.T)  # Stable: equal rows stay in their order.
    is_equal = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    firsts: dict[int, int] = {}
    for position in np.flatnonzero(is_equal):
        before, row = map(int, order[position : position + 2])
        firsts[row] = firsts.get(before, before)
    return firsts


class CopyLines:
    """Lines of the manifest in which a copy has the key `copy_of`; keeps the groups of copies."""

    def __init__(self, lines: Iterable[tuple[bytes, dict]], firsts: Mapping[int, int]):
        self._lines, self._firsts = lines, firsts
        self._groups: dict[int, list[dict]] = {row: [] for row in sorted(firsts.values())}

    def __iter__(self) -> Iterator[tuple[bytes, dict]]:
        rows = itertools.count()
        for line, record in self._lines:
            row = None if "reason" in record else next(rows)
            first = self._firsts.get(row, row)
            if first in self._groups:
                group = self._groups[first]
                if group:
                    record = record | {"copy_of": group[0]["path"]}
                    line = (to_json(record) + "\n").encode()
                group.append({name: record[name] for name in ("path", "split", "class")})
            yield line, record

    def write(self, folder: pathlib.Path) -> None:
        """Writes one line per group of equal images, after the lines have been read."""
        lines = (to_json(group) + "\n" for group in self._groups.values())
        write_atomically(folder / manifest.COPIES, "".join(lines))


def describe_copies(folder: pathlib.Path, max_pairs: int) -> tuple[int, list[str]]:
    """Returns the number of exact duplicates, and a table of them as lines.

    The table counts groups of equal images, and the images in them. It has a row for each pair
    of classes, and of splits, at most `max_pairs` of each; it is empty if no images are equal.
    """
    path = folder / manifest.COPIES
    if not path.exists():  # `folder` was written by an earlier version.
        return 0, []
    groups = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not groups:
        return 0, []
    total = sum(map(len, groups))
    rows = [("exact duplicates", "groups", "images"), ("all", len(groups), total)]
    inside = [
        count
        for group in groups
        for count in collections.Counter((i["split"], i["class"]) for i in group).values()
        if count > 1
    ]
    rows.append(("in one class", len(inside), sum(inside)))
    for key, plural in (("class", "classes"), ("split", "splits")):
        rows += _count_pairs(groups, key, f"in several {plural}", max_pairs)
    width = max(len(name) for name, *_ in rows)
    lines = [f"{name.ljust(width)}  {n!s:>8}  {count!s:>8}" for name, n, count in rows]
    return total, [*lines, f"exact duplicates are listed in {path}"]


def _count_pairs(groups: list[list[dict]], key: str, title: str, max_pairs: int) -> list[tuple]:
    """Returns rows of the table: groups with several values of a key, and each pair of these."""
    groups_of: collections.Counter[str] = collections.Counter()
    images: collections.Counter[str] = collections.Counter()
    for group in groups:
        counts = collections.Counter(image[key] for image in group)
        if len(counts) > 1:
            groups_of[title] += 1
            images[title] += len(group)
        for one, other in itertools.combinations(sorted(counts), 2):
            groups_of[f"  {one}, {other}"] += 1
            images[f"  {one}, {other}"] += counts[one] + counts[other]
    pairs = sorted(set(groups_of) - {title}, key=lambda name: (-groups_of[name], name))
    rows = [(name, groups_of[name], images[name]) for name in (title, *pairs[:max_pairs])]
    more = len(pairs) - max_pairs
    return [*rows, (f"  {more} more pairs", "", "")] if more > 0 else rows
