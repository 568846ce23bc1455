"""Atomic writing of files, and errors that contain the file name."""

import contextlib
import os
import pathlib

ERRORS = "surrogateescape"  # File names may contain bytes that are not UTF-8.


@contextlib.contextmanager
def add_path_to_errors(path: pathlib.Path):
    """Adds the file name to an OSError that has none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file through a temporary file and a rename.

    No reader sees a partly written file, even if the process is killed.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # Processes may write in parallel.
    content = content.encode("utf-8", ERRORS) if isinstance(content, str) else content
    try:
        with add_path_to_errors(path), open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # An earlier error is the one to report.
            temporary.unlink()
