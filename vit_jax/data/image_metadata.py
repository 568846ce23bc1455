"""Metadata of image files: the orientation, and removal of the rest, which may be damaged."""

import struct
from collections.abc import Iterator

ORIENTATION = 0x0112  # EXIF tag; 1 is upright.
INTEGERS = {1: "B", 3: "H", 4: "I"}  # EXIF type -> format of `struct`.

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
# Of a PNG: pixels, palette, transparency and orientation. All other chunks are metadata.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
SCAN, APP0, APP15, ADOBE, COMMENT = 0xDA, 0xE0, 0xEF, 0xEE, 0xFE  # Markers of a JPEG.


def exif_orientation(exif: bytes) -> int | None:
    """Returns the orientation in EXIF data; None if there is none, whatever the other tags are."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(order + "HHI", exif, entry)
            if tag == ORIENTATION and kind in INTEGERS and number == 1:
                return struct.unpack_from(order + INTEGERS[kind], exif, entry + 8)[0]
    except struct.error:  # Truncated.
        pass
    return None


def without_metadata(data: bytes) -> Iterator[bytes]:
    """Yields a file, then without metadata except EXIF, then without any metadata.

    A file that has none is yielded once.
    """
    yield data
    for keeps_exif in (True, False):
        if data.startswith(PNG):
            stripped = _strip_png(data, keeps_exif)
        elif data.startswith(JPEG):
            stripped = _strip_jpeg(data, keeps_exif)
        else:
            return
        if len(stripped) == len(data):
            return
        yield stripped


def _strip_png(data: bytes, keeps_exif: bool) -> bytes:
    parts, start = [PNG], len(PNG)
    while start + 8 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        name = data[start + 4 : start + 8]
        if name in PNG_CHUNKS and (keeps_exif or name != b"eXIf"):
            parts.append(data[start:end])
        start = end
    return b"".join(parts)


def _strip_jpeg(data: bytes, keeps_exif: bool) -> bytes:
    """Removes comments and application segments before the scan, except Adobe's colour space."""
    parts, end = [JPEG], len(JPEG)
    for start, end in _jpeg_segments(data):
        marker, content = data[start + 1], data[start + 4 : end]
        is_metadata = APP0 <= marker <= APP15 or marker == COMMENT
        is_exif = content.startswith(b"Exif\0\0") and keeps_exif
        is_adobe = marker == ADOBE and content.startswith(b"Adobe") and len(content) >= 12
        if not is_metadata or is_exif or is_adobe:
            parts.append(data[start:end])
    return b"".join((*parts, data[end:]))


def before_scan(data: bytes) -> int:
    """Returns the number of bytes of a JPEG before its first scan, which are quick to search."""
    return max((end for _, end in _jpeg_segments(data)), default=len(JPEG))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yields start and end of every segment of a JPEG before its first scan."""
    start = len(JPEG)
    while data[start : start + 1] == b"\xff" and start + 4 <= len(data):
        if data[start + 1] == 0xFF:  # Any number of 0xFF may precede a marker.
            start += 1
            continue
        if data[start + 1] == SCAN:
            return
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        yield start, end
        start = end
