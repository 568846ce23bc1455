"""Errors that a user can cause, each with the exit code of the command line."""

import difflib
from collections.abc import Iterable, Sequence


class Note(str):
    """Note on an error (`add_note`) that the command line prints; those of libraries are not."""


class VitJaxError(Exception):
    """Base class of errors shown to the user as one line.

    The command line exits with `exit_code`.
    """

    exit_code = 1


class ConfigError(VitJaxError, ValueError):
    """Invalid config, flag, batch size, mesh or image size, or a workdir that cannot be used."""

    exit_code = 2


class InUseError(ConfigError):
    """Workdir that another process is writing to."""


class DataError(VitJaxError):
    """Missing or empty folder, unknown class, unreadable image, or label out of range."""

    exit_code = 3


class CheckpointError(VitJaxError):
    """Weights that are missing, damaged, of the wrong shape, or cannot be saved."""

    exit_code = 4


class NonFiniteError(VitJaxError, ValueError):
    """Loss, gradients or results that are not finite."""

    exit_code = 5


class HostError(VitJaxError):
    """Another process of the run cannot be reached or did not respond in time."""

    exit_code = 6


class StalledError(VitJaxError):
    """Data worker that makes no progress."""

    exit_code = 6


class Interrupted(VitJaxError):
    """A signal ended the run after the last finished step was saved."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number

    def __reduce__(self):
        return type(self), (*self.args, self.exit_code - 128), self.__dict__


def notes_of(error: BaseException) -> list[Note]:
    """Returns the notes on an error that are this package's own."""
    return [note for note in getattr(error, "__notes__", ()) if isinstance(note, Note)]


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns a hint such as ' Did you mean steps?', or '' if no name is similar."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]}?" if matches else ""


def one_line(error: object) -> str:
    """Returns the message of an error in one line of limited length; its class if it is empty."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def raised(error: BaseException) -> str:
    """Returns the class and the first line of the message of an error of the user's code."""
    return f"{type(error).__name__}: {one_line(str(error).strip().partition(chr(10))[0])}"


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True if Python or the devices of JAX ran out of memory."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def listed(items: Sequence[object], most: int = 20, separator: str = "; ") -> str:
    """Returns items for a message: the first ones, and the number of the others."""
    text = separator.join(map(str, items[:most]))
    rest, joint = len(items) - most, "; and" if separator == "; " else " and"
    return f"{text}{joint} {rest} more" if rest > 0 else text


def form(value: object) -> str:
    """Returns dtype and shape of an array, such as float32 (2, 3); the type of anything else."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {tuple(value.shape)}"
    return type(value).__name__


def shown(value: object, length: int = 80) -> str:
    """Returns the repr of a value for a message, cut off after a number of characters."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print whole numbers of more than 4,300 digits.
        return "a number of thousands of digits"
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"
