"""Training and evaluation batches in an order that depends on seed and position alone.

Position p of the training stream is example p % n of epoch p // n, in an order that is shuffled
again for each epoch. Host i of k reads rows i*B/k to (i+1)*B/k of every global batch, or the rows
that lie on its devices, so the batches are the same for any number of hosts, devices and workers.
"""

import dataclasses
import functools
import itertools
import typing
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from vit_jax.data import workers as workers_lib
from vit_jax.data.decode import UnreadableImage
from vit_jax.errors import ConfigError, DataError

if typing.TYPE_CHECKING:  # Workers do not need JAX, which takes seconds to import.
    import jax

PADDING_ID = -1
HOST_ONLY = ("id", "bad")  # Columns that no device needs.
MAX_BAD_RUN = 100  # Unreadable images in a row that are skipped.
REMEDY = (
    "To skip unreadable images, use --config.data.on_bad_image=skip; `prepare` lists all of them."
)
# Grain shuffles by walking the cycle of a cipher, without memory, but over at least 2^16
# positions: an index among 50 takes 0.6 ms. Smaller sets are permuted as a whole, once an epoch.
GRAIN_SHUFFLE_FROM = 1 << 16


class IndexSampler:
    """Index of the example at each position of the endless training stream.

    With `repeats`, each example has that many consecutive positions (arXiv:1902.05509).
    """

    def __init__(self, num_examples: int, seed: int, repeats: int = 1):
        self.num_examples, self.seed, self.repeats = num_examples, seed, repeats
        if num_examples >= GRAIN_SHUFFLE_FROM:
            import grain

            self._shuffled = grain.MapDataset.range(num_examples).seed(seed).shuffle().repeat()

    def __getitem__(self, position: int) -> int:
        position //= self.repeats
        if self.num_examples >= GRAIN_SHUFFLE_FROM:
            return int(self._shuffled[position])
        epoch, within = divmod(position, self.num_examples)
        return int(_permutation(self.num_examples, self.seed, epoch)[within])

    def occurrence(self, position: int) -> int:
        """Returns how many earlier positions have the same example."""
        position, repeat = divmod(position, self.repeats)
        return position // self.num_examples * self.repeats + repeat

    def batch(self, step: int, batch_size: int) -> np.ndarray:
        """Returns the ids of the global batch of a step, in order."""
        first = step * batch_size
        return np.array([self[i] for i in range(first, first + batch_size)], np.int64)


@functools.lru_cache(64)  # An epoch or two of each set of a mixture; at most 512 KB each.
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_examples)


class MixtureSampler(IndexSampler):
    """Index sampler of several sets that are concatenated, each with its share of the stream.

    Of every `sum(shares)` examples a set gives its share, spread evenly and always at the same
    positions; each set goes through its own shuffled epochs.
    """

    def __init__(self, sizes, shares, seed: int, repeats: int = 1):
        self.num_examples, self.repeats, self.shares = sum(sizes), repeats, shares
        self._starts = [0, *itertools.accumulate(sizes)]
        seeds = np.random.SeedSequence(seed).generate_state(len(sizes))
        self._samplers = [IndexSampler(size, int(own)) for size, own in zip(sizes, seeds)]
        # Example j of a share of a is at (j + 1/2) / a of the period.
        counts = np.concatenate([np.arange(share) for share in shares])
        sets = np.repeat(np.arange(len(shares)), shares)
        by_time = np.argsort((counts + 0.5) / np.repeat(shares, shares), kind="stable")
        self._sets, self._counts = sets[by_time], counts[by_time]

    def _locate(self, position: int) -> tuple[int, int]:
        """Returns the set at a position, and the position in the stream of that set."""
        period, within = divmod(position, len(self._sets))
        index = int(self._sets[within])
        return index, period * self.shares[index] + int(self._counts[within])

    def __getitem__(self, position: int) -> int:
        index, own = self._locate(position // self.repeats)
        return self._starts[index] + self._samplers[index][own]

    def occurrence(self, position: int) -> int:
        position, repeat = divmod(position, self.repeats)
        index, own = self._locate(position)
        return self._samplers[index].occurrence(own) * self.repeats + repeat


def make_sampler(source, seed: int, repeats: int = 1) -> IndexSampler:
    """Returns the index sampler of a source, or of a mixture, which has `sizes` and `shares`."""
    if hasattr(source, "shares"):
        return MixtureSampler(source.sizes, source.shares, seed, repeats)
    return IndexSampler(len(source), seed, repeats)


def crc_of_ids(ids: np.ndarray) -> int:
    """Returns the CRC-32 of ids as little-endian 64-bit integers."""
    return zlib.crc32(np.asarray(ids).astype("<i8").tobytes())


@dataclasses.dataclass(frozen=True)
class HostShard:
    """Rows of every global batch that this host reads: one or several of its equal blocks."""

    batch_size: int  # Global.
    blocks: int | tuple[int, ...]  # In ascending order.
    num_blocks: int

    @classmethod
    def from_hosts(cls, batch_size: int, num_hosts: int = 1, host: int = 0) -> "HostShard":
        """Returns an equal shard for each host; raises ConfigError if the batch does not divide."""
        if batch_size % num_hosts:
            raise ConfigError(f"batch_size {batch_size} is not divisible by {num_hosts} hosts.")
        return cls(batch_size, host, num_hosts)

    @classmethod
    def from_sharding(cls, sharding: "jax.sharding.Sharding", batch_size: int) -> "HostShard":
        """Returns the shard whose rows lie on the devices of this process.

        On a TPU slice its blocks may be apart, and if a mesh splits examples, several hosts have
        the same rows.
        """
        slices = sharding.addressable_devices_indices_map((batch_size,)).values()
        spans = {rows.indices(batch_size)[:2] for (rows,) in slices}
        size = {stop - start for start, stop in spans}.pop()
        blocks = tuple(sorted(start // size for start, _ in spans))
        return cls(batch_size, blocks, batch_size // size)

    @property
    def num_rows(self) -> int:
        """Number of rows in each batch."""
        return self.batch_size // self.num_blocks * len(self._blocks)

    @property
    def _blocks(self) -> tuple[int, ...]:
        return (self.blocks,) if isinstance(self.blocks, int) else self.blocks

    def position(self, row: int) -> int:
        """Returns the position in the global stream of this host's row number `row`."""
        batch, within = divmod(row, self.num_rows)
        size = self.batch_size // self.num_blocks
        block, within = divmod(within, size)
        return batch * self.batch_size + self._blocks[block] * size + within


def _record(source, index: int, recipe: Callable) -> dict:
    """Returns the row of an example; a recipe returns its image, or a dictionary of columns."""
    record = source[index]
    label, num_classes = record["label"], len(source.classes)
    if num_classes and not 0 <= label < num_classes:
        # On a device such a label would train the last class, or give NaN, without an error.
        raise DataError(f"{source.name(index)}: label {label} is out of range [0, {num_classes}).")
    made = recipe(record["image"])
    columns = made if isinstance(made, dict) else {"image": made}
    return columns | {
        "label": np.int32(label),
        "mask": np.float32(1),
        "id": np.int64(index),
    }


@dataclasses.dataclass(frozen=True)
class TrainRows:
    """Training rows of this host from step `start` to step `stop`.

    `bad` is 1 in a row whose image could not be read. With on_bad_image='skip' the image and
    label are then those of the next readable example; `id` remains that of the sampler.
    """

    source: object
    recipe: Callable
    sampler: IndexSampler
    shard: HostShard
    seed: int
    start: int
    stop: int
    on_bad_image: str = "error"

    def __len__(self) -> int:
        return (self.stop - self.start) * self.shard.num_rows

    def __getitem__(self, row: int) -> dict:
        position = self.shard.position(row + self.start * self.shard.num_rows)
        index = self.sampler[position]
        try:
            record, bad = self._record(position, index, index), 0
        except UnreadableImage as error:
            if self.on_bad_image == "error":
                raise UnreadableImage(f"{error} {REMEDY}") from error
            record, bad = self._substitute(position, index, error), 1
        return record | {"id": np.int64(index), "bad": np.int32(bad)}

    def name(self, row: int) -> str:
        """Returns the name of the example of a row."""
        position = self.shard.position(row + self.start * self.shard.num_rows)
        return self.source.name(self.sampler[position])

    def _record(self, position: int, planned: int, index: int) -> dict:
        # Augmentation depends on the example and its occurrence, not on the worker.
        random = np.random.default_rng((self.seed, self.sampler.occurrence(position), planned))
        return _record(self.source, index, lambda image: self.recipe(image, random))

    def _substitute(self, position: int, planned: int, error: UnreadableImage) -> dict:
        for step in range(1, min(MAX_BAD_RUN, len(self.source))):
            try:
                return self._record(position, planned, (planned + step) % len(self.source))
            except UnreadableImage:
                continue
        raise DataError(
            f"{error} The next {MAX_BAD_RUN} images cannot be read either; check data.dir."
        ) from error


@dataclasses.dataclass(frozen=True)
class EvalRows:
    """Evaluation rows of this host: every example once, in order, padded to whole batches.

    `mask` is 0 in a row of padding, whose `id` is PADDING_ID, and with on_bad_image='skip' in the
    row of an unreadable image.
    """

    source: object
    recipe: Callable
    shard: HostShard
    on_bad_image: str = "error"

    def __len__(self) -> int:
        return -(-len(self.source) // self.shard.batch_size) * self.shard.num_rows

    def __getitem__(self, row: int) -> dict:
        index = self.shard.position(row)
        if index >= len(self.source):
            return self._blank(PADDING_ID)
        try:
            return _record(self.source, index, self.recipe)
        except UnreadableImage as error:
            if self.on_bad_image == "error":
                raise UnreadableImage(f"{error} {REMEDY}") from error
            return self._blank(index)

    def _blank(self, index: int) -> dict:
        return {
            "image": np.zeros(self.recipe.shape, np.float32),
            "label": np.int32(0),
            "mask": np.float32(0),
            "id": np.int64(index),
        }

    def name(self, row: int) -> str:
        """Returns the name of the example of a row."""
        index = self.shard.position(row)
        return self.source.name(index) if index < len(self.source) else "padding"


def check_bad_images(num_bad: int, num_images: int, max_bad: float, num_epochs: int = 1) -> None:
    """Raises DataError if more than the fraction `data.max_bad` of the images cannot be read.

    One image per epoch is not too many, however small the data set is, unless `max_bad` is 0.
    """
    if num_bad > max(max_bad * num_images, num_epochs if max_bad else 0):
        raise DataError(
            f"{num_bad} of {num_images} images could not be read, more than data.max_bad={max_bad} "
            "allows; the command `prepare` lists them."
        )


def host_batches(
    rows, shard: HostShard, workers: int, patience: workers_lib.Patience | None = None
) -> Iterator[dict]:
    """Yields numpy batches of this host's rows, prepared by threads or by `workers` processes.

    Raises DataError for a record that cannot be used, StalledError for a worker without progress.
    """
    return workers_lib.batches(rows, shard.num_rows, workers, patience)


def to_devices(batch: dict, sharding: "jax.sharding.Sharding") -> dict:
    """Returns global arrays made of the rows of every host, without HOST_ONLY columns."""
    import jax

    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
        if name not in HOST_ONLY
    }
