"""The errors a user can cause, each with the exit code of the command line."""

import difflib
from collections.abc import Iterable


class VitJaxError(Exception):
    """A mistake or a mishap told in one line; `exit_code` is what the shell sees."""

    exit_code = 1


class ConfigError(VitJaxError, ValueError):
    """Config, flags, divisibility, image size, or a workdir that is not ours to use."""

    exit_code = 2


class InUseError(ConfigError):
    """A workdir that another process writes to."""


class DataError(VitJaxError):
    """Missing or empty folder, unknown class, unreadable image, label out of range."""

    exit_code = 3


class CheckpointError(VitJaxError):
    """Weights that are missing, damaged, of another shape, or cannot be saved."""

    exit_code = 4


class NonFiniteError(VitJaxError):
    """The loss or the gradients stopped being numbers."""

    exit_code = 5


class HostError(VitJaxError):
    """Another process of the run is out of reach, or did not come in time."""

    exit_code = 6


class Interrupted(VitJaxError):
    """A signal ended the run after its last finished step was saved."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.exit_code = 128 + signal_number


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint such as ' Did you mean steps?', or '' when nothing is close."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {matches[0]}?" if matches else ""
