"""Kinds of files by their first bytes, for errors about files that are not images."""

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".png", ".apng", ".webp")
# Suffixes of images in formats that are not decoded.
OTHER_IMAGES = (
    *(".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".hif", ".ico", ".j2c", ".j2k", ".jp2"),
    *(".jpf", ".jpx", ".jxl", ".pbm", ".pgm", ".pnm", ".ppm", ".psd", ".svg", ".tga", ".tif"),
    *(".tiff", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2"),
)
ARCHIVES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tbz2", ".tgz", ".txz", ".xz", ".zip", ".zst")
DECODED = ("a JPEG", "a PNG", "a WebP")
COMPRESSED = (
    *("a gzip archive", "a bzip2 archive", "an xz archive", "a zstd archive", "a 7z archive"),
    *("a ZIP archive", "a RAR archive"),
)
STARTS = (  # First bytes -> kind.
    (b"\xff\xd8\xff", "a JPEG"),
    (b"\x89PNG\r\n\x1a\n", "a PNG"),
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"II+\0", "a BigTIFF"),
    (b"MM\0+", "a BigTIFF"),
    (b"8BPS", "a Photoshop file"),
    (b"\0\0\x01\0", "an icon"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"(\xb5/\xfd", "a zstd archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"version https://git-lfs", "a Git LFS pointer; `git lfs pull` downloads the file"),
)
BRANDS = {  # Brand of an ISO media file -> kind.
    b"avif": "an AVIF image",
    b"avis": "an AVIF image",
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1"), "a HEIF image (HEIC)"),
}


def describe(data: bytes) -> str:
    """Returns the kind of a file by its content, such as 'a GIF'; '' if it is not recognised."""
    if not data:
        return "an empty file"
    if not data.strip(b"\0"):
        return f"{len(data):,} zero bytes"
    if data[4:8] == b"ftyp":
        return BRANDS.get(data[8:12], "a video or other ISO media file")
    if data[:4] == b"RIFF":
        return "a WebP" if data[8:12] == b"WEBP" else "a RIFF file"
    for start, kind in STARTS:
        if data.startswith(start):
            return kind
    return _describe_text(data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower())


def _describe_text(head: bytes) -> str:
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if b"<svg" in head:
        return "an SVG"
    is_text = head and all(byte >= 32 or byte in b"\t\r\n" for byte in head)
    return "a text file" if is_text else ""
