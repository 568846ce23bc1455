"""Batches in a global order that is a pure function of seed and place.

Place p of the training stream is example p % n of epoch p // n, in an order that Grain
shuffles anew each epoch. Host i of k reads rows i*B/k to (i+1)*B/k of every global batch,
so the batches are the same, in set and order, for any number of hosts, devices and workers.
"""

import dataclasses
import os
import signal
import zlib
from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np

from vit_jax.errors import ConfigError, DataError

PADDING_ID = -1
# Grain shuffles by walking a cipher's cycle, without memory, but over no fewer than 2^16
# places: an index among 50 takes 0.6 ms. Smaller sets are permuted whole, once an epoch.
GRAIN_SHUFFLE_FROM = 1 << 16


class Order:
    """Which example stands at each place of the endless training stream."""

    def __init__(self, num_examples: int, seed: int):
        self.num_examples, self.seed = num_examples, seed
        places = grain.MapDataset.range(num_examples).seed(seed).shuffle()
        self._shuffled = places.repeat()
        self._epoch: tuple[int, np.ndarray] = (-1, np.array([]))

    def __getitem__(self, place: int) -> int:
        if self.num_examples >= GRAIN_SHUFFLE_FROM:
            return int(self._shuffled[place])
        epoch, within = divmod(place, self.num_examples)
        known, ids = self._epoch
        if known != epoch:
            ids = np.random.default_rng((self.seed, epoch)).permutation(self.num_examples)
            self._epoch = (epoch, ids)
        return int(ids[within])

    def batch(self, step: int, batch_size: int) -> np.ndarray:
        """Ids of the global batch of a step, in order."""
        first = step * batch_size
        return np.array([self[place] for place in range(first, first + batch_size)], np.int64)


def crc_of_ids(ids: np.ndarray) -> int:
    """CRC-32 of ids as little-endian 64-bit integers: a fingerprint of a batch's order."""
    return zlib.crc32(np.asarray(ids).astype("<i8").tobytes())


@dataclasses.dataclass(frozen=True)
class Share:
    """This host's rows of every global batch."""

    batch_size: int  # Global.
    host: int
    num_hosts: int

    @property
    def rows(self) -> int:
        return self.batch_size // self.num_hosts

    def place(self, row: int) -> int:
        """The place in the global stream of this host's row number `row`."""
        batch, within = divmod(row, self.rows)
        return batch * self.batch_size + self.host * self.rows + within


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
    """A Grain source: this host's rows from step `start` to step `stop`."""

    source: object
    recipe: Callable
    order: Order
    share: Share
    seed: int
    start: int
    stop: int

    def __len__(self) -> int:
        return (self.stop - self.start) * self.share.rows

    def __getitem__(self, row: int) -> dict:
        place = self.share.place(row + self.start * self.share.rows)
        index = self.order[place]
        # Augmentation follows the example and its epoch, not the worker that happens to run it.
        random = np.random.default_rng((self.seed, place // self.order.num_examples, index))
        return _record(self.source, index, lambda image: self.recipe(image, random))


@dataclasses.dataclass(frozen=True)
class EvalRows:
    """A Grain source: every example once, in order, then padding to whole batches."""

    source: object
    recipe: Callable
    share: Share
    size: tuple[int, int]

    def __len__(self) -> int:
        return -(-len(self.source) // self.share.batch_size) * self.share.rows

    def __getitem__(self, row: int) -> dict:
        index = self.share.place(row)
        if index < len(self.source):
            return _record(self.source, index, self.recipe)
        return {
            "image": np.zeros((*self.size, 3), np.float32),
            "label": np.int32(0),
            "mask": np.float32(0),
            "id": np.int64(PADDING_ID),
        }


def host_batches(rows, share: Share, workers: int) -> Iterator[dict]:
    """Stacked numpy batches of this host's rows, read ahead by threads or processes.

    Raises DataError for a record that cannot be used.
    """
    threads = min(8, max(1, (os.cpu_count() or 1) // 2))  # The other half is for the device.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(2, threads))
    batches = grain.MapDataset.source(rows).batch(share.rows).to_iter_dataset(options)
    if workers:
        _mark_grain_flags_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers)
        batches = batches.mp_prefetch(options, worker_init_fn=_ignore_signals)
    iterator = iter(batches)
    try:
        yield from iterator
    except RuntimeError as error:
        if "worker" not in str(error).lower():
            raise
        words = " ".join(str(error).split())[:200]
        raise DataError(f"a data worker process came to an end: {words}") from error
    finally:
        if hasattr(iterator, "close"):
            iterator.close()


def _ignore_signals(*_) -> None:
    """A signal to the whole process group is for the parent to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _mark_grain_flags_parsed() -> None:
    from absl import flags  # Grain's workers read absl flags, which only absl.app.run parses.

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def share_of_batch(batch_size: int, num_hosts: int = 1, host: int = 0) -> Share:
    """This host's share; raises ConfigError when the batch does not divide."""
    if batch_size % num_hosts:
        raise ConfigError(f"batch_size {batch_size} is not divisible by {num_hosts} hosts.")
    return Share(batch_size, host, num_hosts)


def to_devices(batch: dict, sharding: jax.sharding.Sharding) -> dict:
    """Global arrays from every host's rows; ids stay behind on the host."""
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in batch.items()
        if name != "id"
    }
