"""Batches in a global order that is a pure function of seed and place.

Place p of the training stream is example p % n of epoch p // n, in an order that is shuffled
anew each epoch. Host i of k reads rows i*B/k to (i+1)*B/k of every global batch, or whichever
rows lie on its devices, so the batches are the same, in set and order, for any number of hosts,
devices and workers.
"""

import dataclasses
import functools
import itertools
import typing
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from vit_jax.config.schema import Data
from vit_jax.data import workers as workers_lib
from vit_jax.data.decode import UnreadableImage
from vit_jax.errors import ConfigError, DataError

if typing.TYPE_CHECKING:  # Workers have no need of JAX, which takes seconds to import.
    import jax

PADDING_ID = -1
HOST_ONLY = ("id", "bad")  # Columns that no device needs.
MOST_BAD = 100  # Unreadable images in a row that are passed over.
# Grain shuffles by walking a cipher's cycle, without memory, but over no fewer than 2^16
# places: an index among 50 takes 0.6 ms. Smaller sets are permuted whole, once an epoch.
GRAIN_SHUFFLE_FROM = 1 << 16


class Order:
    """Which example stands at each place of the endless training stream.

    With repeats, each stands at so many places in a row (arXiv:1902.05509).
    """

    def __init__(self, num_examples: int, seed: int, repeats: int = Data.repeats):
        self.num_examples, self.seed, self.repeats = num_examples, seed, repeats
        if num_examples >= GRAIN_SHUFFLE_FROM:
            import grain

            self._shuffled = grain.MapDataset.range(num_examples).seed(seed).shuffle().repeat()

    def __getitem__(self, place: int) -> int:
        place //= self.repeats
        if self.num_examples >= GRAIN_SHUFFLE_FROM:
            return int(self._shuffled[place])
        epoch, within = divmod(place, self.num_examples)
        return int(_permutation(self.num_examples, self.seed, epoch)[within])

    def visit(self, place: int) -> int:
        """How often the example at this place came before."""
        place, repeat = divmod(place, self.repeats)
        return place // self.num_examples * self.repeats + repeat

    def batch(self, step: int, batch_size: int) -> np.ndarray:
        """Ids of the global batch of a step, in order."""
        first = step * batch_size
        return np.array([self[place] for place in range(first, first + batch_size)], np.int64)


@functools.lru_cache(64)  # An epoch or two of each set of a mixture; at most 512 KB each.
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)


class MixedOrder(Order):
    """The order of several sets, one after the other in the index, each with its share.

    Of every `sum(shares)` examples a set gives its share, spread evenly and always at the same
    places; each set goes through shuffled epochs of its own.
    """

    def __init__(self, sizes, shares, seed: int, repeats: int = Data.repeats):
        self.num_examples, self.repeats, self.shares = sum(sizes), repeats, shares
        self._starts = [0, *itertools.accumulate(sizes)]
        seeds = np.random.SeedSequence(seed).generate_state(len(sizes))
        self._orders = [Order(size, int(own)) for size, own in zip(sizes, seeds)]
        # Turn j of a share of a lies at (j + 1/2) / a of the period.
        turns = np.concatenate([np.arange(share) for share in shares])
        owners = np.repeat(np.arange(len(shares)), shares)
        by_time = np.argsort((turns + 0.5) / np.repeat(shares, shares), kind="stable")
        self._pattern, self._turn = owners[by_time], turns[by_time]

    def _find(self, place: int) -> tuple[int, int]:
        """The set whose turn it is, and the place in that set's own order."""
        cycle, within = divmod(place, len(self._pattern))
        which = int(self._pattern[within])
        return which, cycle * self.shares[which] + int(self._turn[within])

    def __getitem__(self, place: int) -> int:
        which, own = self._find(place // self.repeats)
        return self._starts[which] + self._orders[which][own]

    def visit(self, place: int) -> int:
        place, repeat = divmod(place, self.repeats)
        which, own = self._find(place)
        return self._orders[which].visit(own) * self.repeats + repeat


def make_order(source, seed: int, repeats: int = Data.repeats) -> Order:
    """The training order of a source, or of a mixture, which has `sizes` and `shares`."""
    if hasattr(source, "shares"):
        return MixedOrder(source.sizes, source.shares, seed, repeats)
    return Order(len(source), seed, repeats)


def crc_of_ids(ids: np.ndarray) -> int:
    """CRC-32 of ids as little-endian 64-bit integers: a fingerprint of a batch's order."""
    return zlib.crc32(np.asarray(ids).astype("<i8").tobytes())


@dataclasses.dataclass(frozen=True)
class Share:
    """This host's rows of every global batch: one or several of its equal blocks."""

    batch_size: int  # Global.
    blocks: int | tuple[int, ...]  # In ascending order.
    num_blocks: int

    @property
    def rows(self) -> int:
        return self.batch_size // self.num_blocks * len(self._blocks)

    @property
    def _blocks(self) -> tuple[int, ...]:
        return (self.blocks,) if isinstance(self.blocks, int) else self.blocks

    def place(self, row: int) -> int:
        """The place in the global stream of this host's row number `row`."""
        batch, within = divmod(row, self.rows)
        size = self.batch_size // self.num_blocks
        block, within = divmod(within, size)
        return batch * self.batch_size + self._blocks[block] * size + within


def _record(source, index: int, recipe: Callable) -> dict:
    record = source[index]
    label, num_classes = record["label"], len(source.classes)
    if not 0 <= label < num_classes:
        # On a device such a label would train the last class, or give NaN, without a word.
        raise DataError(f"{source.name(index)}: label {label} is out of range [0, {num_classes}).")
    return {
        "image": recipe(record["image"]),
        "label": np.int32(label),
        "mask": np.float32(1),
        "id": np.int64(index),
    }


@dataclasses.dataclass(frozen=True)
class TrainRows:
    """This host's rows from step `start` to step `stop`.

    `bad` is 1 in a row whose image could not be read. With on_bad_image='skip' the image and
    label are then those of the next index that can be; `id` stays what the order planned.
    """

    source: object
    recipe: Callable
    order: Order
    share: Share
    seed: int
    start: int
    stop: int
    on_bad_image: str = Data.on_bad_image

    def __len__(self) -> int:
        return (self.stop - self.start) * self.share.rows

    def __getitem__(self, row: int) -> dict:
        place = self.share.place(row + self.start * self.share.rows)
        index = self.order[place]
        try:
            record, bad = self._record(place, index, index), 0
        except UnreadableImage as error:
            if self.on_bad_image == "error":
                raise
            record, bad = self._substitute(place, index, error), 1
        return record | {"id": np.int64(index), "bad": np.int32(bad)}

    def _record(self, place: int, planned: int, index: int) -> dict:
        # Augmentation follows the example and its visit, not the worker that happens to run it.
        random = np.random.default_rng((self.seed, self.order.visit(place), planned))
        return _record(self.source, index, lambda image: self.recipe(image, random))

    def _substitute(self, place: int, planned: int, error: UnreadableImage) -> dict:
        for step in range(1, min(MOST_BAD, len(self.source))):
            try:
                return self._record(place, planned, (planned + step) % len(self.source))
            except UnreadableImage:
                continue
        raise DataError(
            f"{error} The next {MOST_BAD} images cannot be read either; check data.dir."
        ) from error


@dataclasses.dataclass(frozen=True)
class EvalRows:
    """Every example once, in order, then padding to whole batches: this host's rows."""

    source: object
    recipe: Callable
    share: Share

    def __len__(self) -> int:
        return -(-len(self.source) // self.share.batch_size) * self.share.rows

    def __getitem__(self, row: int) -> dict:
        index = self.share.place(row)
        if index < len(self.source):
            return _record(self.source, index, self.recipe)
        return {
            "image": np.zeros(self.recipe.shape, np.float32),
            "label": np.int32(0),
            "mask": np.float32(0),
            "id": np.int64(PADDING_ID),
        }


def host_batches(rows, share: Share, workers: int) -> Iterator[dict]:
    """Numpy batches of this host's rows, filled ahead by threads or, with workers, processes.

    Raises DataError for a record that cannot be used.
    """
    return workers_lib.batches(rows, share.rows, workers)


def share_of_batch(batch_size: int, num_hosts: int = 1, host: int = 0) -> Share:
    """This host's share; raises ConfigError when the batch does not divide."""
    if batch_size % num_hosts:
        raise ConfigError(f"batch_size {batch_size} is not divisible by {num_hosts} hosts.")
    return Share(batch_size, host, num_hosts)


def share_of(sharding: "jax.sharding.Sharding", batch_size: int) -> Share:
    """The share whose rows lie on this process's devices.

    On a TPU slice they may be blocks apart, and where a mesh splits examples, several hosts
    have the same rows.
    """
    places = sharding.addressable_devices_indices_map((batch_size,)).values()
    spans = {rows.indices(batch_size)[:2] for (rows,) in places}
    size = {stop - start for start, stop in spans}.pop()
    return Share(batch_size, tuple(sorted(start // size for start, _ in spans)), batch_size // size)


def to_devices(batch: dict, sharding: "jax.sharding.Sharding") -> dict:
    """Global arrays from every host's rows; HOST_ONLY columns stay behind."""
    import jax

    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
        if name not in HOST_ONLY
    }
