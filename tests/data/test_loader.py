"""The order of examples depends on seed and position alone, for any hosts and workers."""

import itertools
import re
import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from vit_jax.config.schema import Data
from vit_jax.data.image_folder import FolderSource
from vit_jax.data.loader import (
    GRAIN_SHUFFLE_FROM,
    PADDING_ID,
    EvalRows,
    HostShard,
    IndexSampler,
    TrainRows,
    crc_of_ids,
    host_batches,
    to_devices,
)
from vit_jax.data.preprocess import EvalRecipe, TrainRecipe
from vit_jax.data.sources import ArraySource, FakeSource, open_split
from vit_jax.distributed import mesh as mesh_lib
from vit_jax.errors import ConfigError, DataError

SIZE = (4, 6)
RECIPE = TrainRecipe(Data(augment="inception_crop(0.3)|flip"), SIZE)
EVAL_RECIPE = EvalRecipe.from_data(Data(), SIZE)


def noise(count: int, labels=None) -> ArraySource:
    """Small images that differ in every pixel."""
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 9, 3)).astype(np.uint8)
    labels = np.arange(count) % 3 if labels is None else np.array(labels)
    return ArraySource(images, labels, ("a", "b", "c"))


def train_batches(source, batch_size, start, stop, hosts=1, host=0, workers=0, recipe=RECIPE):
    shard = HostShard(batch_size, host, hosts)
    rows = TrainRows(source, recipe, IndexSampler(len(source), 5), shard, 5, start, stop)
    return list(host_batches(rows, shard, workers))


def eval_batches(source, batch_size, hosts=1, host=0, workers=0):
    shard = HostShard(batch_size, host, hosts)
    return list(host_batches(EvalRows(source, EVAL_RECIPE, shard), shard, workers))


def assert_same(batches, others, extra=("bad",)):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others):
        assert batch.keys() == other.keys() == {"image", "label", "mask", "id", *extra}
        for name in batch:
            assert batch[name].dtype == other[name].dtype
            np.testing.assert_array_equal(batch[name], other[name])


def test_index_sampler_shuffles_every_epoch_anew():
    sampler = IndexSampler(10, seed=0)
    epochs = [[sampler[10 * epoch + i] for i in range(10)] for epoch in range(5)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 5
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert tuple(range(10)) not in map(tuple, epochs)


def test_index_sampler_shuffles_large_sets_as_a_whole():
    sampler = IndexSampler(GRAIN_SHUFFLE_FROM, seed=0)
    first = [sampler[i] for i in range(GRAIN_SHUFFLE_FROM)]
    assert sorted(first) == list(range(GRAIN_SHUFFLE_FROM))
    assert [sampler[GRAIN_SHUFFLE_FROM + i] for i in range(9)] != first[:9]


def test_index_sampler_depends_on_the_seed_alone():
    a, b, c = ([IndexSampler(100, seed)[i] for i in range(100)] for seed in (1, 1, 2))
    assert a == b != c
    sampler = IndexSampler(7, seed=3)
    there = [sampler[i] for i in range(20)]
    assert [sampler[i] for i in reversed(range(20))] == there[::-1]  # No memory of what was read.


def test_index_sampler_accepts_one_example():
    assert [IndexSampler(1, 0)[position] for position in range(3)] == [0, 0, 0]


def test_batches_continue_across_epochs_without_loss():
    # 4 batches of 5 over 7 examples: two whole epochs and 6 of the third.
    ids = np.concatenate([batch["id"] for batch in train_batches(noise(7), 5, 0, 4)])
    assert sorted(ids[:7]) == sorted(ids[7:14]) == list(range(7))
    assert len(set(ids[14:])) == 6
    np.testing.assert_array_equal(
        ids, np.concatenate([IndexSampler(7, 5).batch(step, 5) for step in range(4)])
    )


def test_train_rows_have_the_image_and_label_of_their_id():
    source = noise(9)
    plain = TrainRecipe(Data(augment="resize"), (8, 9))
    for batch in train_batches(source, 4, 0, 5, recipe=plain):
        expected = source.images[batch["id"]] / np.float32(127.5) - 1
        np.testing.assert_allclose(batch["image"], expected, atol=1e-6)
        np.testing.assert_array_equal(batch["label"], source.labels[batch["id"]])
        np.testing.assert_array_equal(batch["mask"], np.ones(4))
        assert [batch[name].dtype for name in ("image", "label", "mask")] == [
            np.float32,
            np.int32,
            np.float32,
        ]


@pytest.mark.parametrize("hosts", [2, 4])
def test_host_shards_make_up_the_global_batch(hosts):
    source = noise(21)
    shards = [train_batches(source, 8, 2, 8, hosts, host) for host in range(hosts)]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shards, strict=True)
    ]
    assert_same(joined, train_batches(source, 8, 2, 8))


def test_train_rows_from_a_later_step_equal_those_of_the_whole_run():
    source = noise(13)  # An epoch ends within step 2, and step 4 of the 26.
    whole = train_batches(source, 6, 0, 8)
    for start in (1, 2, 3, 7):
        assert_same(train_batches(source, 6, start, 8), whole[start:])


def test_augmentation_differs_between_examples_and_epochs():
    one = ArraySource(np.repeat(noise(1).images, 3, 0), np.zeros(3, int), ("a",))
    batches = train_batches(one, 3, 0, 10)  # Ten epochs of three equal images.
    images = {image.tobytes() for batch in batches for image in batch["image"]}
    assert len(images) > 25


@pytest.fixture(scope="module")
def folder(photo_folder) -> FolderSource:
    return open_split(Data(source="folder", dir=str(photo_folder)), "train")


def test_worker_processes_give_equal_batches(folder):
    # 7 steps of 8 over 48 files: the second epoch begins in the last step.
    recipe = TrainRecipe(Data(), (16, 24))
    without = train_batches(folder, 8, 0, 7, recipe=recipe)
    assert_same(train_batches(folder, 8, 0, 7, workers=2, recipe=recipe), without)
    assert sorted(np.concatenate([batch["id"] for batch in without])[:48]) == list(range(48))


@pytest.mark.parametrize(("label", "workers"), [(3, 0), (3, 1), (-1, 0)])
def test_label_out_of_range_is_reported_with_its_record(label, workers):
    source = noise(6, labels=[0, 1, 2, 0, label, 2])
    expected = f"4: label {label} is out of range [0, 3)."
    with pytest.raises(DataError) as caught:
        train_batches(source, 3, 0, 2, workers=workers)
    assert str(caught.value) == expected
    with pytest.raises(DataError) as caught:
        eval_batches(source, 4)
    assert str(caught.value) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_reported_with_its_file(workers, tmp_path):
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    whole = (tmp_path / "b/0.png").read_bytes()
    (tmp_path / "b/0.png").write_bytes(whole[:45])
    files = ("a/0.png", "a/1.png", "b/0.png", "b/1.png")
    source = FolderSource(str(tmp_path), files, np.array([0, 0, 1, 1]), ("a", "b"))
    with pytest.raises(DataError) as caught:
        train_batches(source, 2, 0, 2, workers=workers)
    assert re.fullmatch(
        r"/\S*/b/0\.png: unreadable image \(.*\)\..*--config\.data\.on_bad_image=skip; `prepare`.*",
        str(caught.value),
    )
    if not workers:
        with pytest.raises(DataError, match=r"b/0\.png: unreadable image"):
            eval_batches(source, 2)


B = 12


@pytest.mark.parametrize("count", [1, 7, B - 1, B, B + 1])
@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_eval_rows_have_each_example_once(count, hosts):
    source = noise(count)
    shards = [eval_batches(source, B, hosts, host) for host in range(hosts)]
    # All hosts see the same number of whole batches: a device program needs them all.
    assert {len(batches) for batches in shards} == {-(-count // B)}
    assert {len(b["id"]) for batches in shards for b in batches} == {B // hosts}
    rows = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shards, strict=True)
    ]
    ids, mask, labels, images = (
        np.concatenate([batch[name] for batch in rows]) for name in ("id", "mask", "label", "image")
    )
    np.testing.assert_array_equal(mask, np.arange(len(ids)) < count)
    np.testing.assert_array_equal(ids[mask > 0], np.arange(count))
    np.testing.assert_array_equal(labels[mask > 0], source.labels)
    assert (ids[mask == 0] == PADDING_ID).all()
    for i in range(count):
        np.testing.assert_array_equal(images[i], EVAL_RECIPE(source.images[i]))


def test_host_batches_can_be_abandoned_early():
    shard = HostShard(2, 0, 1)
    rows = TrainRows(noise(5), RECIPE, IndexSampler(5, 0), shard, 0, 0, 10**9)
    assert len(list(itertools.islice(host_batches(rows, shard, 0), 3))) == 3


def test_host_shard_rejects_a_batch_that_does_not_divide():
    assert HostShard.from_hosts(8, 4, 1).num_rows == 2
    with pytest.raises(ConfigError, match="batch_size 10 is not divisible by 4 hosts"):
        HostShard.from_hosts(10, 4)


def test_crc_of_ids_is_that_of_little_endian_64_bit_integers():
    ids = np.array([3, 0, 2**33 + 7])
    assert crc_of_ids(ids) == zlib.crc32(struct.pack("<3q", *ids))
    assert crc_of_ids(ids.astype(">i8")) == crc_of_ids(ids)
    assert crc_of_ids(ids[::-1]) != crc_of_ids(ids)
    assert crc_of_ids(np.array([], np.int64)) == 0


@pytest.mark.parametrize("devices", [1, 8])
def test_to_devices_keeps_the_order_of_rows_and_drops_ids(devices):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    batch = eval_batches(FakeSource(11, SIZE, ("a", "b"), 0), 16)[0]
    arrays = to_devices(batch, mesh_lib.batch_sharding(mesh))
    assert set(arrays) == {"image", "label", "mask"}
    for name, array in arrays.items():
        assert len(array.sharding.device_set) == devices
        np.testing.assert_array_equal(array, batch[name])
