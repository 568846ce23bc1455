"""Progress lines on standard output."""

import sys
import time


class Progress:
    """Prints a line that a terminal or notebook overwrites, and one per interval elsewhere."""

    def __init__(self, seconds_between: float = 0.0):
        """Creates a progress printer.

        Args:
          seconds_between: minimum seconds between two progress lines if standard output is
            neither a terminal nor a notebook.
        """
        self._stream = sys.stdout
        self._is_live = _can_overwrite(self._stream)
        self._width = 0
        self._seconds_between = seconds_between
        self._shown_at = time.monotonic()

    def show(self, line: str) -> None:
        """Prints a progress line; in a terminal or notebook it replaces the previous one."""
        if self._is_live:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        elif time.monotonic() - self._shown_at >= self._seconds_between:
            self._stream.write(line + "\n")
            self._shown_at = time.monotonic()
        self._stream.flush()

    def print_line(self, line: str) -> None:
        """Prints a line that is not overwritten."""
        if self._is_live and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._width = 0
        self._stream.write(line + "\n")
        self._stream.flush()


def _can_overwrite(stream) -> bool:
    """Returns True for a terminal and for the output of a notebook cell, which obey `\\r`."""
    return stream.isatty() or type(stream).__module__.startswith("ipykernel")


def format_duration(seconds: float) -> str:
    """Returns seconds as H:MM:SS, or as M:SS below one hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
