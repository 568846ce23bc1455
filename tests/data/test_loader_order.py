"""Which example stands where: proved over whole epochs, workers, shards, repeats and mixtures."""

import collections
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from tests.support.runs import ROOT
from vit_jax.config.schema import Data
from vit_jax.data import batch_memory
from vit_jax.data.decode import Encoded
from vit_jax.data.loader import (
    GRAIN_SHUFFLE_FROM,
    HostShard,
    IndexSampler,
    MixtureSampler,
    TrainRows,
    host_batches,
    make_sampler,
    to_devices,
)
from vit_jax.data.preprocess import TrainRecipe
from vit_jax.data.sources import ArraySource
from vit_jax.distributed import mesh
from vit_jax.errors import DataError

SIZE, SEED = (4, 6), 5


def noise(count: int) -> ArraySource:
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 9, 3)).astype(np.uint8)
    return ArraySource(images, np.arange(count) % 3, ("a", "b", "c"))


def batches(source, start, stop, hosts=1, host=0, workers=0, size=8, repeats=1):
    shard, sampler = HostShard(size, host, hosts), make_sampler(source, SEED, repeats)
    rows = TrainRows(source, TrainRecipe(Data(), SIZE), sampler, shard, SEED, start, stop)
    return host_batches(rows, shard, workers)


def joined(parts) -> dict:
    """All batches one after the other."""
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_equal(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_an_epoch_of_batches_has_every_id_exactly_once():
    ids = joined(batches(noise(20), 0, 10))["id"].reshape(4, 20)  # Ten steps of 8: four epochs.
    np.testing.assert_array_equal(np.sort(ids), [range(20)] * 4)
    assert len({tuple(epoch) for epoch in ids}) == 4


@pytest.mark.parametrize(("workers", "hosts"), [(0, 2), (0, 4), (1, 1), (2, 1), (2, 2), (3, 4)])
def test_workers_and_shards_change_neither_order_nor_pixels(workers, hosts):
    source = noise(21)  # Ends of epochs lie within batches; three workers share two rows.
    shares = [batches(source, 1, 7, hosts, host, workers) for host in range(hosts)]
    assert_equal(joined(map(joined, zip(*shares, strict=True))), joined(batches(source, 1, 7)))


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_batches_equal_those_of_the_uninterrupted_run(workers):
    source = noise(13)
    whole = joined(batches(source, 0, 9))
    for stop in (1, 4):  # At the second, the third epoch begins within the batch.
        left = batches(source, 0, 9, workers=workers)
        before = joined([next(left) for _ in range(stop)])
        left.close()
        assert_equal(joined([before, *batches(source, stop, 9, workers=workers)]), whole)


def test_augmentation_depends_on_seed_epoch_and_index():
    source = noise(5)
    rows = joined(batches(source, 0, 4))
    for position in range(32):
        index = rows["id"][position]
        random = np.random.default_rng((SEED, position // 5, index))
        expected = TrainRecipe(Data(), SIZE)(source.images[index], random)
        np.testing.assert_array_equal(rows["image"][position], expected)


def assert_occurrences_count(sampler, positions: int):
    seen = collections.Counter()
    for position in range(positions):
        index = sampler[position]
        assert sampler.occurrence(position) == seen[index]
        seen[index] += 1


def test_repeats_are_consecutive_and_augmented_differently():
    source = noise(6)
    sampler, once = make_sampler(source, SEED, repeats=3), make_sampler(source, SEED)
    assert [sampler[position] for position in range(60)] == [
        once[position // 3] for position in range(60)
    ]
    assert_occurrences_count(sampler, 60)
    rows = joined(batches(source, 0, 6, size=6, repeats=3))
    np.testing.assert_array_equal(rows["id"][::3], rows["id"][2::3])
    images = {image.tobytes() for image in rows["image"]}
    assert len(images) == len(rows["id"]) == 36  # No view comes twice, in either epoch.


@pytest.mark.parametrize("shares", [(1,), (1, 1), (3, 1), (5, 2, 1), (1, 7)])
def test_mixture_sampler_keeps_its_shares_in_every_stretch(shares):
    sampler = MixtureSampler([50] * len(shares), shares, seed=1)
    owners = np.array([sampler[position] for position in range(4 * sum(shares))]) // 50
    for which, share in enumerate(shares):
        so_far = np.cumsum(owners == which)
        ideal = np.arange(1, len(owners) + 1) * share / sum(shares)
        assert np.abs(so_far - ideal).max() <= 1
        np.testing.assert_array_equal(
            so_far[sum(shares) - 1 :: sum(shares)], share * np.arange(1, 5)
        )


def test_mixture_sampler_gives_each_set_its_own_epochs():
    sampler = MixtureSampler([5, 7], (2, 1), seed=1)
    ids = np.array([sampler[position] for position in range(3 * 35)])
    small, large = ids[ids < 5].reshape(-1, 5), ids[ids >= 5].reshape(-1, 7)
    np.testing.assert_array_equal(np.sort(small), [range(5)] * 14)
    np.testing.assert_array_equal(np.sort(large), [range(5, 12)] * 5)
    assert len({tuple(epoch) for epoch in small}) > 10
    assert_occurrences_count(sampler, 105)
    assert_occurrences_count(MixtureSampler([5, 7], (2, 1), seed=1, repeats=2), 105)


def test_mixture_sampler_shuffles_sets_of_equal_size_differently():
    sampler = MixtureSampler([30, 30], (1, 1), seed=1)
    ids = [sampler[position] for position in range(60)]
    assert [i for i in ids if i < 30] != [i - 30 for i in ids if i >= 30]


def test_mixture_sampler_of_large_sets_needs_no_memory():
    sampler = MixtureSampler([GRAIN_SHUFFLE_FROM, 14_000_000], (1, 3), seed=1)
    far = 10**9
    assert 0 <= sampler[far] < sampler.num_examples
    assert sampler.occurrence(far) in (far // 4 // GRAIN_SHUFFLE_FROM, far * 3 // 4 // 14_000_000)


def test_make_sampler_chooses_by_the_kind_of_source():
    class Mixed:
        sizes, shares = (3, 4), (1, 2)

    assert type(make_sampler(noise(3), 0)) is IndexSampler
    assert type(make_sampler(Mixed(), 0)) is MixtureSampler


# The memory of batches is used again.


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_batch_is_not_overwritten(workers):
    source = noise(21)
    kept, seen = [], []
    for batch in batches(source, 0, 12, workers=workers):  # More than there are slots.
        kept.append(batch)
        seen.append({name: array.copy() for name, array in batch.items()})
    for batch, then in zip(kept, seen):
        assert_equal(batch, then)


def test_batch_on_devices_is_not_overwritten():
    sharding = mesh.batch_sharding(mesh.make_mesh(devices=jax.devices()[:1]))
    kept, seen = [], []
    for batch in batches(noise(21), 0, 12):
        kept.append(to_devices(batch, sharding))
        seen.append(batch["image"].copy())
        del batch
        if len(kept) == 3:  # As a training loop does: the oldest go, the newest stay.
            np.testing.assert_array_equal(kept.pop(0)["image"], seen.pop(0))
    assert set(kept[0]) == {"image", "label", "mask"}


def test_memory_of_released_batches_is_reused():
    addresses = [batch["image"].ctypes.data for batch in batches(noise(21), 0, 30)]
    assert len(set(addresses)) <= batch_memory.SLOTS


# Worker processes come to an end.

READER = """
import multiprocessing, os, signal, sys
import numpy as np
from vit_jax.data import workers

class Rows:
    def __len__(self):
        return 10**6

    def __getitem__(self, row):
        return {"image": np.full((2, 2), row), "id": np.int64(row)}

if __name__ == "__main__":
    left = workers.batches(Rows(), 4, workers=2)
    next(left)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


def is_alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ("pass", 0, ""),
        ("raise ValueError('mine')", 1, "ValueError: mine"),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    ],
)
def test_workers_end_with_their_process_and_print_nothing(end, code, words, tmp_path):
    script = tmp_path / "reader.py"
    script.write_text(READER + textwrap.indent(end, "    ") + "\n")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=60
    )  # Returns when the last that holds its output has ended, workers too.
    assert done.returncode == code
    assert done.stderr.strip().splitlines()[-1:] == ([words] if words else [])
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    assert not any(map(is_alive, pids))


def test_killed_worker_changes_neither_order_nor_pixels():
    import multiprocessing

    source = noise(21)
    left = batches(source, 0, 20, workers=2)
    first = next(left)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    assert_equal(joined([first, *left]), joined(batches(source, 0, 20)))
    assert not multiprocessing.active_children()


class Late:
    """A recipe with a mistake that the first image does not show."""

    def __init__(self, first: int):
        self.first = first

    def __call__(self, image, random):
        if image.mean() != self.first:
            image.no_such_thing  # noqa: B018
        return np.zeros((1, 1, 3), np.float32)


@pytest.mark.parametrize(("workers", "kind"), [(0, AttributeError), (1, RuntimeError)])
def test_error_in_a_worker_keeps_its_message(workers, kind):
    sampler = IndexSampler(8, SEED)
    recipe = Late(Holes()[sampler[0]]["image"].mean())
    rows = TrainRows(Holes(), recipe, sampler, HostShard(2, 0, 1), 0, 0, 2)
    with pytest.raises(kind, match="no_such_thing"):
        list(host_batches(rows, rows.shard, workers))


# Unreadable images.


class Holes:
    """Eight images; those of the given indices cannot be read."""

    classes = ("a", "b", "c", "d")

    def __init__(self, *holes: int):
        self.holes = holes

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict:
        if index in self.holes:
            return {"image": Encoded(b"no image", self.name(index)), "label": index % 4}
        return {"image": np.full((8, 9, 3), 10 * index, np.uint8), "label": index % 4}

    def name(self, index: int) -> str:
        return f"file {index}"


def skipping(source, workers=0) -> dict:
    rows = TrainRows(
        source,
        TrainRecipe(Data(), SIZE),
        IndexSampler(8, SEED),
        HostShard(4, 0, 1),
        SEED,
        0,
        4,
        on_bad_image="skip",
    )
    return joined(host_batches(rows, rows.shard, workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_next_readable_image_replaces_an_unreadable_one(workers):
    rows, whole = skipping(Holes(2, 6, 7), workers), joined(batches(Holes(), 0, 4, size=4))
    np.testing.assert_array_equal(rows["id"], whole["id"])  # As planned.
    taken = {2: 3, 6: 0, 7: 0}
    expected = np.array([taken.get(index, index) for index in rows["id"]])
    np.testing.assert_array_equal(rows["label"], expected % 4)
    greys = np.round((rows["image"][:, 0, 0, 0] + 1) * 127.5)
    np.testing.assert_array_equal(greys, 10 * expected)
    np.testing.assert_array_equal(rows["bad"], np.isin(rows["id"], [2, 6, 7]))
    assert rows["bad"].dtype == np.int32
    assert not whole["bad"].any()


def test_unreadable_image_is_an_error_by_default():
    with pytest.raises(DataError, match=r"^file 5: unreadable image"):
        joined(batches(Holes(5), 0, 4, size=4))
    with pytest.raises(DataError, match=r"^file \d: unreadable image .* cannot be read either"):
        skipping(Holes(*range(8)))


def test_label_out_of_range_is_not_skipped():
    source = Holes(3)
    source.classes = ("a", "b", "c")
    with pytest.raises(DataError, match=r"^file [37]: label 3 is out of range \[0, 3\)\.$"):
        skipping(source)
