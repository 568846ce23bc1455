"""Progress lines on standard output."""

import sys
import time

from vit_jax.text import can_overwrite, fit_to_terminal, printable, write


class Progress:
    """Prints a line that a terminal or notebook overwrites, and one per interval elsewhere."""

    def __init__(self, seconds_between: float = 0.0):
        """Creates a progress printer.

        Args:
          seconds_between: minimum seconds between two progress lines if standard output is
            neither a terminal nor a notebook.
        """
        self._stream = sys.stdout
        self._is_live = can_overwrite(self._stream)
        self._width = 0
        self._seconds_between = seconds_between
        self._shown_at = time.monotonic()

    def show(self, line: str) -> None:
        """Prints a progress line; in a terminal or notebook it replaces the previous one."""
        if self._is_live:
            line = fit_to_terminal(line, self._stream)
            write(self._stream, "\r" + line.ljust(self._width))
            self._width = len(line)
        elif time.monotonic() - self._shown_at >= self._seconds_between:
            write(self._stream, printable(line) + "\n")
            self._shown_at = time.monotonic()

    def print_line(self, line: str) -> None:
        """Prints a line that is not overwritten."""
        erase = "\r" + " " * self._width + "\r" if self._width else ""
        self._width = 0
        write(self._stream, erase + printable(line) + "\n")


def format_duration(seconds: float) -> str:
    """Returns seconds as H:MM:SS, or as M:SS below one hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
