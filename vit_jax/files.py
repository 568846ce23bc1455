"""Files that are written whole or not at all, and errors that name them."""

import contextlib
import os
import pathlib


@contextlib.contextmanager
def naming(path: pathlib.Path):
    """Gives an OSError from inside, such as a full disk's, the file's name."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes by way of a temporary file, so that no reader and no kill sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    with naming(path), open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
