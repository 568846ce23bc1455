"""Atomic writing of ArrayRecord files."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Callable, Iterator

from vit_jax.atomic_io import replace_atomically


@contextlib.contextmanager
def write_atomically(path: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
    """Yields `write(record)` of an ArrayRecord file, which gets its name when it is complete.

    If the disk is full, raises OSError with the name of the file, and leaves no file.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    with replace_atomically(path) as temporary:
        try:
            writer = ArrayRecordWriter(str(temporary), "group_size:1")  # As TFDS does.
            yield writer.write
            writer.close()
        except RuntimeError as error:
            raise _disk_error(error) from error


def _disk_error(error: RuntimeError) -> Exception:
    """Returns the OSError whose text is in an error of the writer; else the error itself."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    return error
