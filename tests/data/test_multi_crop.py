"""Several crops of an image: columns, views, one decoding, and batches of them."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from vit_jax.config.schema import Data
from vit_jax.data import decode, preprocess
from vit_jax.data.block_masks import BlockMasks
from vit_jax.data.decode import Encoded, UnreadableImage
from vit_jax.data.loader import HostShard, TrainRows, host_batches, make_sampler
from vit_jax.data.mixture import mix
from vit_jax.data.multi_crop import MultiCropRecipe
from vit_jax.data.preprocess import TrainRecipe
from vit_jax.data.sources import ArraySource
from vit_jax.errors import ConfigError

MASKS = BlockMasks((3, 4))
RANDOM = Data(
    augment="random_resized_crop(0.4)|flip",
    local_augment="random_resized_crop(0.05,0.4)|flip",
    local_crops=3,
    local_size=(4, 6),
)


def images(count: int, size=(40, 50)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3)).astype(np.uint8)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def jpeg(image: np.ndarray) -> Encoded:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    return Encoded(file.getvalue(), "a.jpg")


@pytest.mark.parametrize("masks", [None, MASKS])
@pytest.mark.parametrize("local_crops", [0, 1, 3])
def test_columns_are_the_shapes_and_dtypes_of_the_result(masks, local_crops):
    recipe = MultiCropRecipe(Data(local_crops=local_crops, local_size=(4, 6)), (12, 16), masks)
    made = recipe(images(1)[0], generator())
    assert {name: (a.shape, a.dtype) for name, a in made.items()} == recipe.columns
    expected = {"image": (2, 12, 16, 3)}
    if local_crops:
        expected["local"] = (local_crops, 4, 6, 3)
    if masks:
        expected["is_masked"] = (2, 12)
    assert {name: shape for name, (shape, _) in recipe.columns.items()} == expected


def test_columns_of_one_view_are_those_of_its_recipe():
    recipe = TrainRecipe(Data(), (12, 16))
    made = recipe(images(1)[0], generator())
    assert recipe.columns == {"image": (made.shape, made.dtype)}


def test_each_kind_of_crop_has_its_own_augmentation_and_size():
    image = images(1)[0]
    data = Data(
        augment="resize",
        second_augment="resize|solarize(1)",
        local_augment="resize|grayscale(1)",
        local_crops=2,
        local_size=8,
    )
    made = MultiCropRecipe(data, (12, 16))(image, generator())
    first = preprocess.resize(image, (12, 16), "antialias")
    second = np.where(first < 128, first, 255 - first)
    small = Image.fromarray(preprocess.resize(image, (8, 8), "antialias"))
    local = np.asarray(small.convert("L").convert("RGB"))
    for actual, expected in zip((*made["image"], *made["local"]), (first, second, local, local)):
        np.testing.assert_allclose(actual, expected / 127.5 - 1, atol=1e-6)


def test_second_global_crop_has_the_augmentation_of_the_first_by_default():
    made = MultiCropRecipe(Data(augment="resize|solarize(1)"), (12, 16))(images(1)[0], generator())
    np.testing.assert_array_equal(*made["image"])


def test_all_crops_are_drawn_independently():
    made = MultiCropRecipe(RANDOM, (12, 16))(images(1)[0], generator())
    assert len({crop.tobytes() for crop in (*made["image"], *made["local"])}) == 5


def test_result_depends_on_the_image_and_the_generator_alone():
    recipe, image = MultiCropRecipe(RANDOM, (12, 16), MASKS), images(1)[0]
    before = image.copy()
    one, same, other = (recipe(image, generator(seed)) for seed in (1, 1, 2))
    for name in recipe.columns:
        np.testing.assert_array_equal(one[name], same[name])
        assert (one[name] != other[name]).any()
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("fast_crop", [False, True])
@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_image_is_decoded_once_for_all_crops(fast_crop, decoder, monkeypatch):
    reads, read = [], decode.read

    def counted(image, decoder, shrink=1, max_megapixels=64.0):
        reads.append(shrink)
        return read(image, decoder, shrink, max_megapixels)

    monkeypatch.setattr(decode, "read", counted)
    data = Data(
        augment="resize",
        local_augment="resize",
        local_crops=3,
        local_size=48,
        decoder=decoder,
        fast_crop=fast_crop,
    )
    # The global crops alone could be decoded at 1/8 of the size, the local ones at 1/4.
    image = np.kron(images(1, (8, 8))[0], np.ones((25, 25, 1), np.uint8))
    made = MultiCropRecipe(data, (20, 20))(jpeg(image), generator())
    assert reads == [4 if fast_crop else 1]
    exact = preprocess.resize(image, (48, 48), "antialias") / 127.5 - 1
    assert np.abs(made["local"][0] - exact).mean() < 0.1


def test_fast_crops_of_a_large_image_are_close_to_exact_ones(photos):
    image, crops = jpeg(photos[0]), []
    for fast_crop in (False, True):
        data = Data(
            augment="random_resized_crop(0.9)",
            local_augment="random_resized_crop(0.4,0.4)",
            local_crops=2,
            local_size=24,
            fast_crop=fast_crop,
        )
        crops.append(MultiCropRecipe(data, (48, 64))(image, generator()))
    for name in ("image", "local"):
        assert np.abs(crops[0][name] - crops[1][name]).mean() < 0.05


def test_wrong_augmentation_is_an_error_that_names_its_field():
    for field, text in (
        ("augment", "resize|blurr"),
        ("second_augment", "flip"),
        ("local_augment", "resize|resize"),
    ):
        with pytest.raises(ConfigError, match=rf"^config\.data\.{field}") as caught:
            MultiCropRecipe(Data(**{field: text}), (12, 16))
        assert "\n" not in str(caught.value)


def source(count: int) -> ArraySource:
    return ArraySource(images(count), np.arange(count) % 2, ("a", "b"))


def batches(source, workers=0, repeats=1, hosts=1, host=0, start=0, stop=3, **options):
    shard = HostShard(4, host, hosts)
    sampler = make_sampler(source, 5, repeats)
    recipe = MultiCropRecipe(RANDOM, (12, 16), MASKS)
    rows = TrainRows(source, recipe, sampler, shard, 5, start, stop, **options)
    return list(host_batches(rows, shard, workers))


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others):
        assert batch.keys() == other.keys()
        for name in batch:
            assert batch[name].dtype == other[name].dtype
            np.testing.assert_array_equal(batch[name], other[name])


def test_batches_have_a_leading_axis_on_every_column():
    (batch, *_) = batches(source(7))
    assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
        "image": ((4, 2, 12, 16, 3), "float32"),
        "local": ((4, 3, 4, 6, 3), "float32"),
        "is_masked": ((4, 2, 12), "bool"),
        "label": ((4,), "int32"),
        "mask": ((4,), "float32"),
        "id": ((4,), "int64"),
        "bad": ((4,), "int32"),
    }
    assert 0 < batch["is_masked"].sum() <= 4 * MASKS.most_masked


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_the_same_for_any_workers_hosts_and_start(workers):
    whole = batches(source(7))
    assert_same(batches(source(7), workers), whole)
    assert_same(batches(source(7), workers, start=1), whole[1:])
    shards = [batches(source(7), hosts=2, host=host) for host in range(2)]
    joined = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shards, strict=True)
    ]
    assert_same(joined, whole)


def test_copies_of_repeats_and_of_later_epochs_have_other_crops_and_masks():
    made = batches(source(2), repeats=2, stop=6)
    for column in ("image", "local", "is_masked"):
        rows = {row.tobytes() for batch in made for row in batch[column]}
        assert len(rows) > (20 if column != "is_masked" else 10), column


def test_mixtures_give_batches_of_crops():
    mixed = mix([source(3), source(5)], shares=[1, 3])
    made = batches(mixed)
    assert made[0]["image"].shape == (4, 2, 12, 16, 3)
    assert_same(batches(mixed, 2), made)


class Damaged:
    """A source whose second image cannot be read."""

    def __init__(self, inner):
        self.inner, self.classes = inner, inner.classes

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        if index == 1:
            raise UnreadableImage("1.jpg: unreadable image (damaged).")
        return self.inner[index]

    def name(self, index):
        return f"{index}.jpg"


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_replaced_in_all_columns(workers):
    damaged = Damaged(source(4))
    with pytest.raises(UnreadableImage, match=r"1\.jpg"):
        batches(damaged, workers, stop=1)
    (batch,) = batches(damaged, workers, stop=1, on_bad_image="skip")
    (row,) = np.flatnonzero(batch["bad"])
    assert batch["id"][row] == 1
    random = np.random.default_rng((5, 0, 1))  # Those of the planned example.
    expected = MultiCropRecipe(RANDOM, (12, 16), MASKS)(damaged.inner[2]["image"], random)
    for name, value in expected.items():
        np.testing.assert_array_equal(batch[name][row], value)


def test_recipe_is_picklable():
    recipe = MultiCropRecipe(RANDOM, (12, 16), MASKS)
    assert pickle.loads(pickle.dumps(recipe)) == recipe
