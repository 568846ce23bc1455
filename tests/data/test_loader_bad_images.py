"""What becomes of each kind of damaged, odd or hostile image file, with either decoder."""

import io
import json
import pathlib
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from sklearn.datasets import load_sample_images

from tests.support.runs import ROOT
from vit_jax.config.schema import Data
from vit_jax.data.decode import Encoded, decode, read, size_of
from vit_jax.data.image_folder import FolderSource
from vit_jax.data.loader import HostShard, IndexSampler, TrainRows, host_batches
from vit_jax.data.preprocess import TrainRecipe
from vit_jax.errors import DataError

DECODERS = ["pillow", "simplejpeg"]
PHOTO = load_sample_images().images[0][100:164, 200:296]  # 64 96 3.
GREY = np.asarray(Image.fromarray(PHOTO).convert("L"))


def encode(image, kind: str, **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG of three channels by hand, with the pixels it may lack."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        length, checksum = (struct.pack(">I", n) for n in (len(data), zlib.crc32(kind + data)))
        return length + kind + data + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + extra + body


def deep_png(image: np.ndarray) -> bytes:
    """Sixteen bits a channel: each value of eight bits, times 257."""
    rows = (image.astype(">u2") * 257).reshape(len(image), -1)
    return png(image.shape[1], image.shape[0], 16, b"".join(b"\0" + row.tobytes() for row in rows))


def flipped_in_the_middle(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def transparent(image: np.ndarray, alpha: int) -> np.ndarray:
    return np.dstack([image, np.full(image.shape[:2], alpha, np.uint8)])


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


JPEG = encode(PHOTO, "JPEG", quality=95)
AS_PILLOW = np.asarray(Image.open(io.BytesIO(JPEG)))
FRAMES = [Image.new("RGB", (96, 64), (n % 256, 9, 9)) for n in range(3)]
CMYK = Image.fromarray(PHOTO).convert("CMYK")
TEXT = PngImagePlugin.PngInfo()
for _ in range(30):
    TEXT.add_text("Comment", "x" * 1_000_000, zip=True)  # 30 KB in the file.

# Kind of file -> what it is, and the error's words or the pixels, with the levels they may miss.
REFUSED = {
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "only a JPEG header": (JPEG[:20], ""),
    "zero bytes": (b"", "an empty file"),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
    "GIF named .jpg": (encode(PHOTO, "GIF"), "a GIF"),
    "BMP named .jpg": (encode(PHOTO, "BMP"), "a BMP"),
    "GIF of a thousand frames": (
        encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:] * 500),
        "a GIF",
    ),
    "truncated PNG": (encode(PHOTO, "PNG")[:-40], ""),
    "PNG of 20000x20000 in 100 bytes": (png(20000, 20000, 8, b"\0"), "pixels"),
    "PNG of 8001x8001": (
        png(8001, 8001, 8, b"\0"),
        r"64\.016 megapixels are more than",
    ),
    "JPEG of 65500x65500": (
        JPEG[: JPEG.index(b"\xff\xc0") + 5]
        + struct.pack(">HH", 65500, 65500)
        + JPEG[JPEG.index(b"\xff\xc0") + 9 :],
        "pixels",
    ),
    "PNG of one row that inflates to 100 MB": (png(96, 64, 8, bytes(10**8)), None),
}
DECODED = {
    "JPEG": (JPEG, AS_PILLOW, 0),
    "progressive JPEG": (encode(PHOTO, "JPEG", quality=95, progressive=True), AS_PILLOW, 0),
    "PNG named .jpg": (encode(PHOTO, "PNG"), PHOTO, 0),
    "CMYK JPEG": (encode(CMYK, "JPEG", quality=100, subsampling=0), PHOTO, 12),
    "grey JPEG": (encode(GREY, "JPEG", quality=100), np.dstack([GREY] * 3), 3),
    "16-bit PNG": (deep_png(PHOTO), PHOTO, 0),
    "16-bit grey PNG": (encode(GREY.astype(np.uint16) * 257, "PNG"), np.dstack([GREY] * 3), 0),
    "RGBA PNG": (encode(transparent(PHOTO, 255), "PNG"), PHOTO, 0),
    "half transparent PNG": (encode(transparent(PHOTO, 127), "PNG"), PHOTO * 0.498 + 128, 1),
    "EXIF-turned JPEG": (
        encode(PHOTO, "JPEG", quality=95, exif=turned(6)),
        np.rot90(AS_PILLOW, -1),
        0,
    ),
    "EXIF-upright JPEG": (encode(PHOTO, "JPEG", quality=95, exif=turned(1)), AS_PILLOW, 0),
    "XMP-turned JPEG": (
        encode(PHOTO, "JPEG", quality=95, xmp=b'<x tiff:Orientation="3"/>'),
        AS_PILLOW[::-1, ::-1],
        0,
    ),
    "MPO, of a phone": (
        encode(PHOTO, "MPO", save_all=True, append_images=FRAMES, quality=95),
        AS_PILLOW,
        0,
    ),
    "animated WebP": (
        encode(PHOTO, "WEBP", save_all=True, append_images=FRAMES, lossless=True),
        PHOTO,
        0,
    ),
    "JPEG with garbage after it": (JPEG + b"garbage" * 100, AS_PILLOW, 0),
    "PNG with 30 MB of text": (encode(PHOTO, "PNG", pnginfo=TEXT), PHOTO, 0),
    "JPEG with a bit flipped": (flipped_in_the_middle(JPEG), None, 0),  # Nothing tells it.
    "JPEG of 1x60000": (encode(np.full((60000, 1, 3), 77, np.uint8), "JPEG"), 77, 1),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", REFUSED)
def test_decode_rejects_damaged_images_with_their_name(kind, decoder):
    data, words = REFUSED[kind]
    if words is None:  # Pillow reads the rows it needs, and stops.
        assert decode(Encoded(data, "x"), decoder).shape == (64, 96, 3)
        return
    with pytest.raises(DataError, match=f"^cats/7.jpg: .*{words}") as caught:
        decode(Encoded(data, "cats/7.jpg"), decoder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", DECODED)
def test_decode_shows_images_as_a_viewer_does(kind, decoder):
    data, expected, levels = DECODED[kind]
    image = decode(Encoded(data, "x"), decoder)
    assert image.dtype == np.uint8
    assert image.shape[:2] == size_of(Encoded(data, "x"), decoder)
    if expected is None:
        expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_allclose(image, np.broadcast_to(expected, image.shape), atol=levels)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("kind", ["JPEG", "grey JPEG", "EXIF-turned JPEG", "PNG named .jpg"])
def test_read_shrinks_a_jpeg_to_means_of_its_pixels(kind, shrink, decoder):
    data = DECODED[kind][0]
    whole = decode(Encoded(data, "x")).astype(float)
    small = np.asarray(read(Encoded(data, "x"), decoder, shrink))
    if kind == "PNG named .jpg":
        np.testing.assert_array_equal(small, whole)
        return
    height, width = (side // shrink for side in whole.shape[:2])
    assert small.shape == (height, width, 3)
    means = whole.reshape(height, shrink, width, shrink, 3).mean((1, 3))
    assert np.abs(small - means).mean() < 2


def folder_of_all(root: pathlib.Path) -> tuple[FolderSource, set[int]]:
    """Every kind as a file, and the indices of those that are refused."""
    kinds = {**REFUSED, **DECODED}
    for number, kind in enumerate(kinds):
        root.joinpath(f"{number}.jpg").write_bytes(kinds[kind][0])
    refused = {n for n, kind in enumerate(kinds) if kinds[kind][1] is not None and kind in REFUSED}
    files = tuple(f"{number}.jpg" for number in range(len(kinds)))
    return FolderSource(str(root), files, np.arange(len(kinds)) % 2, ("a", "b")), refused


@pytest.mark.parametrize("decoder", DECODERS)
def test_train_rows_skip_exactly_the_rejected_images(decoder, tmp_path):
    source, refused = folder_of_all(tmp_path)
    recipe = TrainRecipe(Data(decoder=decoder, fast_crop=True), (16, 16))
    shard, sampler = HostShard(len(source), 0, 1), IndexSampler(len(source), 0)
    rows = TrainRows(source, recipe, sampler, shard, 0, 0, 1, on_bad_image="skip")
    (batch,) = host_batches(rows, shard, 0)
    assert {int(i) for i in batch["id"][batch["bad"] > 0]} == refused
    np.testing.assert_array_equal(batch["id"], sampler.batch(0, len(source)))
    good = np.array([i not in refused for i in batch["id"]])
    np.testing.assert_array_equal(batch["label"][good], source.labels[batch["id"][good]])


ATTACKS = """
import json, pathlib, resource, sys
import numpy as np
from vit_jax.config.schema import Data
from vit_jax.data.decode import Encoded
from vit_jax.data.preprocess import EvalRecipe, TrainRecipe
from vit_jax.errors import DataError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

found = {}
for decoder in sys.argv[2:]:
    size = (224, 224)
    center = EvalRecipe.from_data(Data(eval_crop="center", decoder=decoder), size)
    crops = ("random_crop", "pad_crop")
    train = [TrainRecipe(Data(augment=crop, decoder=decoder), size) for crop in crops]
    for path in pathlib.Path(sys.argv[1]).iterdir():
        image, before = Encoded(path.read_bytes(), path.name), peak()
        for recipe, random in [(center, ()), *((r, (np.random.default_rng(0),)) for r in train)]:
            try:
                recipe(image, *random)
            except DataError:
                pass
        found[f"{path.name} {decoder}"] = peak() - before
print(json.dumps(found))
"""


def test_recipes_need_no_more_memory_than_for_a_large_photo(tmp_path):
    folder_of_all(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", ATTACKS, tmp_path, *DECODERS],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == len({**REFUSED, **DECODED}) * len(DECODERS)
    # The largest permitted image, of 64 million pixels, takes 256 MB of Pillow's memory.
    assert max(found.values()) < 100, found
