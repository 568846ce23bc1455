"""ArrayRecord files that are written whole or not at all."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Callable, Iterator

from vit_jax.atomic_io import add_path_to_errors


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
    """Gives `write` of an ArrayRecord file that takes its name when it is complete.

    Raises OSError, naming the file, where the disk is full; nothing is left of it then.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    # Not the name that a process which is about to die may still be writing to.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with add_path_to_errors(path):
            try:
                writer = ArrayRecordWriter(str(temporary), "group_size:1")  # As TFDS does.
                yield writer.write
                writer.close()
            except RuntimeError as error:
                raise _disk_error(error) from error
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _disk_error(error: RuntimeError) -> Exception:
    """The OSError that the writer tells of in words only; the error itself where it is none."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    return error
