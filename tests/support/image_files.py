"""Image files, tar files and digests of files for tests."""

import hashlib
import io
import pathlib
import tarfile

import numpy as np
from PIL import Image


def encode_image(image: np.ndarray, format: str = "JPEG", **options) -> bytes:
    """Returns an image H W 3 or H W uint8 as the bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format, **options)
    return file.getvalue()


def make_tar(files: dict[str, bytes]) -> bytes:
    """Returns a tar file of {path: content} as bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def file_digests(folder: pathlib.Path) -> dict[str, str]:
    """Returns {file name: SHA-256} of the files in a folder."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
