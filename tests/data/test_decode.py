"""What is an image is decoded as a viewer shows it; what is not is refused by name."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from vit_jax.data import decode as decode_lib
from vit_jax.data.decode import Encoded, as_image
from vit_jax.errors import DataError

PIXELS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [9, 99, 199], [255] * 3]])
PIXELS = PIXELS.astype(np.uint8)


def decode(data: bytes, name: str = "x") -> np.ndarray:
    return decode_lib.decode(Encoded(data, name))


def encode(image, kind: str, **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes, extra=()) -> bytes:
    """A PNG by hand: Pillow writes no 16-bit colour and no image without its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        length, checksum = (struct.pack(">I", n) for n in (len(data), zlib.crc32(kind + data)))
        return length + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_decode_of_lossless_files_gives_their_pixels(kind, options):
    image = decode(encode(PIXELS, kind, **options), "x")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, PIXELS)


@pytest.mark.parametrize(("kind", "most"), [("JPEG", 6), ("WEBP", 12)])
def test_decode_of_lossy_files_gives_nearly_their_pixels(photos, kind, most):
    photo = photos[0][:64, :96]
    image = decode(encode(photo, kind, quality=95), "x")
    assert image.shape == photo.shape
    assert np.abs(image.astype(int) - photo).mean() < most


def test_decode_of_a_jpeg_equals_pillow(photos):
    data = encode(photos[0], "JPEG", quality=75)
    np.testing.assert_array_equal(decode(data, "x"), np.asarray(Image.open(io.BytesIO(data))))


def test_decode_repeats_grey_in_three_channels():
    grey = np.array([[0, 100, 255]], np.uint8)
    expected = [[[0] * 3, [100] * 3, [255] * 3]]
    np.testing.assert_array_equal(decode(encode(grey, "PNG"), "x"), expected)
    one_bit = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(decode(encode(one_bit, "PNG"), "x"), [[[0] * 3, [255] * 3]])


def test_decode_looks_up_a_palette():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 150, 100, 7, 8, 9])
    image.putdata([2, 0, 1])
    expected = [[[7, 8, 9], [10, 20, 30], [200, 150, 100]]]
    np.testing.assert_array_equal(decode(encode(image, "PNG"), "x"), expected)
    # The same with the second colour made transparent: white shows through.
    expected[0][2] = [255, 255, 255]
    data = encode(image, "PNG", transparency=1)
    np.testing.assert_array_equal(decode(data, "x"), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_decode_draws_transparent_images_on_white(kind):
    rgba = np.array([[[200, 100, 0, 0], [200, 100, 0, 51], [200, 100, 0, 255]]], np.uint8)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    image = decode(encode(rgba, kind, **options), "x")
    np.testing.assert_allclose(image, expected, atol=1)
    np.testing.assert_array_equal(image[0, 0], [255, 255, 255])


def test_decode_draws_transparent_grey_on_white():
    grey_alpha = Image.merge("LA", [Image.new("L", (1, 1), 40), Image.new("L", (1, 1), 102)])
    expected = 40 * 0.4 + 255 * 0.6
    np.testing.assert_allclose(decode(encode(grey_alpha, "PNG"), "x"), [[[expected] * 3]], atol=1)


def test_decode_converts_cmyk_to_the_printed_colours():
    cmyk = np.zeros((16, 16, 4), np.uint8)
    cmyk[:] = [255, 51, 0, 51]
    ink = cmyk[0, 0].astype(float)
    expected = (255 - ink[:3]) * (255 - ink[3]) / 255  # 0, 163.2, 204
    image = decode(encode(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=95), "x")
    np.testing.assert_allclose(image[8, 8], expected, atol=3)


def test_decode_scales_16_bit_grey():
    levels = np.array([[0, 257, 257 * 100 + 128, 257 * 200 + 129, 65535]], np.uint16)
    image = decode(encode(levels, "PNG"), "x")
    np.testing.assert_array_equal(image[0, :, 0], [0, 1, 100, 201, 255])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_decode_scales_16_bit_colours():
    levels = np.array([0, 257 * 100, 65535], ">u2")
    image = decode(png(1, 1, 16, 2, b"\0" + levels.tobytes()), "x")
    np.testing.assert_array_equal(image, [[[0, 100, 255]]])


# Where EXIF says the stored row 0 and column 0 lie, and the array that a viewer shows.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_decode_rotates_by_the_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encode(PIXELS, "PNG", exif=exif), "x")
    np.testing.assert_array_equal(image, UPRIGHT[orientation](PIXELS))


def test_decode_of_a_rotated_jpeg_swaps_height_and_width():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(PIXELS, "JPEG", exif=exif), "x").shape == (3, 2, 3)


@pytest.mark.parametrize("exif", [b"", b"garbage", b"MM\0*\0\0\0\x08\0\x05"])
def test_decode_ignores_damaged_exif(exif):
    assert decode(encode(PIXELS, "JPEG", exif=b"Exif\0\0" + exif), "x").shape == (2, 3, 3)


def test_decode_returns_the_first_of_several_frames():
    frames = [Image.fromarray(PIXELS), Image.new("RGB", (3, 2))]
    data = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(decode(data, "x"), PIXELS)
    data = encode(frames[0], "MPO", save_all=True, append_images=frames[1:])  # Of phones.
    assert decode(data, "x").shape == (2, 3, 3)


def whole_jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    return encode(noise, "JPEG")


REFUSED = {
    "zero bytes": b"",
    "HTML": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "truncated JPEG": whole_jpeg()[: len(whole_jpeg()) // 2],
    "JPEG header": whole_jpeg()[:20],
    "truncated PNG": encode(np.arange(3000, dtype=np.uint8).reshape(20, 50, 3), "PNG")[:-40],
    "GIF named .jpg": encode(PIXELS, "GIF"),
    "BMP named .jpg": encode(PIXELS, "BMP"),
    "TIFF named .jpg": encode(PIXELS, "TIFF"),
    "noise": np.random.default_rng(0).bytes(500),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_decode_rejects_other_files_in_one_line_with_their_name(kind):
    with pytest.raises(DataError, match=r"^cats/7\.jpg: unreadable image \(.+\)\.$") as caught:
        decode(REFUSED[kind], "cats/7.jpg")
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)


@pytest.mark.filterwarnings("error")  # Pillow only warns of sizes up to twice its limit.
@pytest.mark.parametrize("side", [8001, 9000, 20000, 60000])
def test_decode_rejects_too_many_pixels_before_memory_is_allocated(side, monkeypatch):
    loads = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: loads.append(image.size))
    data = png(side, side, 8, 2, b"\0" * 100)
    with pytest.raises(DataError, match=r"^bomb\.png: .*pixels"):
        decode(data, "bomb.png")
    assert loads == []


@pytest.mark.parametrize("pixels", [6, 200_000_000])
def test_decode_limits_images_by_max_megapixels_in_one_wording(pixels):
    data = encode(PIXELS, "PNG") if pixels == 6 else png(20_000, 10_000, 8, 2, b"\0" * 100)
    words = rf"^x: {pixels / 1e6:g} megapixels are more than max_megapixels=5e-06\.$"
    with pytest.raises(DataError, match=words):
        decode_lib.decode(Encoded(data, "x"), max_megapixels=5e-6)
    if pixels == 6:
        image = decode_lib.decode(Encoded(data, "x"), max_megapixels=6e-6)
        np.testing.assert_array_equal(image, PIXELS)


def test_decode_warns_of_nothing(recwarn):
    png_of_90_megapixels = png(10_000, 9_000, 8, 2, b"\0" * 100)
    with pytest.raises(DataError):
        decode(png_of_90_megapixels)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x05"  # Five entries, of which none is there.
    assert decode(encode(PIXELS, "JPEG", exif=exif)).shape == (2, 3, 3)
    done = subprocess.run(
        [sys.executable, "-c", WARN.format(exif=exif)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


WARN = """
import io
from PIL import Image
from vit_jax.data.decode import Encoded, decode
file = io.BytesIO()
Image.new("RGB", (3, 2)).save(file, "JPEG", exif={exif!r})
decode(Encoded(file.getvalue(), "x"))
"""


@pytest.mark.parametrize(
    ("depth", "colour_type", "rows", "transparent"),
    [
        (1, 0, b"\x40", b"\0\1"),  # Two pixels: 0 1.
        (2, 0, b"\x10", b"\0\1"),
        (4, 0, b"\x05", b"\0\5"),
        (8, 0, b"\x00\x33", b"\0\x33"),
        (16, 0, b"\0\0\x33\x33", b"\x33\x33"),
        (8, 2, b"\0\0\0\1\2\3", b"\0\1\0\2\0\3"),
        (16, 2, b"\0" * 6 + b"\x33\1\x44\2\x55\3", b"\x33\1\x44\2\x55\3"),
    ],
)
def test_decode_draws_the_transparent_colour_of_a_png_white(depth, colour_type, rows, transparent):
    data = png(2, 1, depth, colour_type, b"\0" + rows, extra=[(b"tRNS", transparent)])
    np.testing.assert_array_equal(decode(data), [[[0] * 3, [255] * 3]])


def test_decode_draws_black_16_bit_grey_white_where_black_is_transparent():
    data = png(2, 1, 16, 0, b"\0" + b"\0\0\xff\0", extra=[(b"tRNS", b"\0\0")])
    np.testing.assert_array_equal(decode(data), [[[255] * 3, [254] * 3]])


ROTATED = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
ODD_TAGS = {  # Tag, type, count, value or its position.
    "negative rational": (0x011A, 10, 1, struct.pack("<I", 38)),
    "unit of another type": (0x0128, 1, 1, b"\2\0\0\0"),
    "text as a number": (0x010F, 5, 1, struct.pack("<I", 38)),
    "unit too large": (0x0128, 4, 2, struct.pack("<I", 38)),
    "value beyond the end": (0x010E, 2, 100, struct.pack("<I", 9999)),
    "value far beyond the end": (0x0100, 12, 2**32 - 1, b"\xff" * 4),
    "unknown type": (0x0110, 99, 1, b"\0" * 4),
    "damaged IFD": (0x8769, 4, 1, struct.pack("<I", 3)),
}


def exif_of(*tags) -> bytes:
    entries = b"".join(struct.pack("<HHI", *tag[:3]) + tag[3] for tag in sorted(tags))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\xff" * 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("tag", ODD_TAGS)
def test_decode_rotates_by_the_orientation_whatever_other_tags_hold(kind, tag):
    exif = exif_of(ROTATED, ODD_TAGS[tag])
    assert decode(encode(PIXELS, kind, exif=exif)).shape == (3, 2, 3)


PNG_METADATA = {
    "text of 3 MB": (b"zTXt", b"key\0\0" + zlib.compress(b"a" * 3_000_000)),
    "profile of 3 MB": (b"iCCP", b"key\0\0" + zlib.compress(b"a" * 3_000_000)),
    "damaged resolution": (b"pHYs", b"\0"),
    "damaged gamma": (b"gAMA", b""),
    "damaged animation": (b"acTL", b""),
}


@pytest.mark.parametrize("case", PNG_METADATA)
def test_decode_of_a_png_does_not_depend_on_its_metadata(case):
    rows = b"".join(b"\0" + row.tobytes() for row in PIXELS)
    oriented = (b"eXIf", exif_of(ROTATED).removeprefix(b"Exif\0\0"))
    data = png(3, 2, 8, 2, rows, extra=[oriented, PNG_METADATA[case]])
    np.testing.assert_array_equal(decode(data), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("start", [b"JFIF\0", b"Adobe", b"MPF\0II*\0", b"Photoshop 3.0\08BIM", b""])
@pytest.mark.parametrize("marker", [0xE0, 0xE2, 0xED, 0xEE, 0xFE])
def test_decode_of_a_jpeg_does_not_depend_on_its_metadata(marker, start):
    data = encode(PIXELS, "JPEG", exif=exif_of(ROTATED))
    segment = b"\xff" + bytes([marker]) + struct.pack(">H", len(start) + 2) + start
    damaged = decode(data[:2] + segment + data[2:])
    np.testing.assert_array_equal(damaged, decode(data))


KINDS = {
    "an empty file": b"",
    "4 zero bytes": b"\0" * 4,
    "a GIF": encode(PIXELS, "GIF"),
    "a BMP": encode(PIXELS, "BMP"),
    "a TIFF": encode(PIXELS, "TIFF"),
    "a HEIF image \\(HEIC\\)": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "an AVIF image": b"\0\0\0\x18ftypavif\0\0\0\0mif1",
    "an HTML page": b"<!DOCTYPE html><html>404</html>",
    "an SVG": b"<?xml version='1.0'?><svg/>",
    "a Git LFS pointer; .*": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "a text file": b"nothing",
}


@pytest.mark.parametrize("kind", KINDS)
def test_decode_names_the_kind_of_a_file_that_is_no_image(kind):
    with pytest.raises(DataError, match=rf"\({kind}; expected JPEG, PNG or WebP\)\.$"):
        decode(KINDS[kind], "x.jpg")


def test_as_image_rejects_a_device():
    """`/dev/zero` has no end."""
    with pytest.raises(DataError, match=r"^/dev/zero: a device;"):
        as_image("/dev/zero")
