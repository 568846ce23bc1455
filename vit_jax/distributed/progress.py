"""The line that shows how far a process is."""

import sys
import time


class Progress:
    """A line that lives on a terminal, and one line per interval elsewhere."""

    def __init__(self, seconds_between: float = 0.0):
        """Elsewhere than on a terminal, lines come no closer than `seconds_between`."""
        self._stream = sys.stdout
        self._is_live = self._stream.isatty()
        self._width = 0
        self._seconds_between = seconds_between
        self._shown_at = time.monotonic()

    def show(self, line: str) -> None:
        """The state of affairs: replaces the last one on a terminal."""
        if self._is_live:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        elif time.monotonic() - self._shown_at >= self._seconds_between:
            self._stream.write(line + "\n")
            self._shown_at = time.monotonic()
        self._stream.flush()

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._is_live and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._width = 0
        self._stream.write(line + "\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """As 1:02:03, or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
