"""Files that are written whole or not at all, and errors that name them."""

import contextlib
import os
import pathlib

ERRORS = "surrogateescape"  # File names may hold bytes that are no UTF-8.


@contextlib.contextmanager
def naming(path: pathlib.Path):
    """Gives an OSError from inside, such as a full disk's, the file's name."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes by way of a temporary file, so that no reader and no kill sees half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # Others may write it, too.
    content = content.encode("utf-8", ERRORS) if isinstance(content, str) else content
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # What went wrong before is told.
            temporary.unlink()
