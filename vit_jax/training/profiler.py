"""Traces of a range of steps, for xprof."""

import contextlib
import dataclasses
import pathlib

import jax

from vit_jax.distributed import multihost

FOLDER = "profile"


@dataclasses.dataclass(frozen=True)
class Window:
    """Steps `first` to `last`, both included."""

    first: int
    last: int


class Profiler:
    """Traces the steps of a window into the folder `profile` of the run.

    Process 0 writes a trace of itself; other processes write none.
    """

    def __init__(self, folder: pathlib.Path, window: Window | None):
        self.folder, self._window = folder / FOLDER, window
        self._is_tracing = False

    def is_past(self, step: int) -> bool:
        """Returns True if the window starts before this step."""
        return self._window is not None and self._window.first < step

    def begins_with(self, step: int) -> bool:
        """Returns True for the first step of the window."""
        return self._window is not None and self._window.first == step

    def ends_with(self, step: int) -> bool:
        """Returns True for the last step of the window."""
        return self._window is not None and self._window.last == step

    def start(self) -> None:
        """Starts the trace; it includes work that the devices have not finished."""
        if multihost.is_process_0():
            jax.profiler.start_trace(str(self.folder))
            self._is_tracing = True

    def step(self, number: int) -> contextlib.AbstractContextManager:
        """Returns a context that marks a dispatched step with its number in the trace."""
        if not self._is_tracing:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def stop(self) -> bool:
        """Writes the trace; returns False if none was started."""
        was_tracing, self._is_tracing = self._is_tracing, False
        if was_tracing:
            jax.profiler.stop_trace()
        return was_tracing
