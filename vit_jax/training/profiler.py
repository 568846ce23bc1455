"""A window of steps whose trace is written for xprof."""

import contextlib
import dataclasses
import pathlib

import jax

from vit_jax.distributed import multihost

FOLDER = "profile"


@dataclasses.dataclass(frozen=True)
class Window:
    """Steps `first` to `last`, both among them."""

    first: int
    last: int


class Profiler:
    """Traces the steps of a window into `profile` of the run's folder.

    Every step of the window is a step of the trace. Process 0 alone writes one, of itself.
    """

    def __init__(self, folder: pathlib.Path, window: Window | None):
        self.folder, self._window = folder / FOLDER, window
        self._is_tracing = False

    def is_past(self, step: int) -> bool:
        """Whether the window began before this step."""
        return self._window is not None and self._window.first < step

    def begins_with(self, step: int) -> bool:
        """Whether this is the window's first step."""
        return self._window is not None and self._window.first == step

    def ends_with(self, step: int) -> bool:
        """Whether this is the window's last step."""
        return self._window is not None and self._window.last == step

    def start(self) -> None:
        """Starts the trace: what the devices are still doing is part of it."""
        if multihost.is_process_0():
            jax.profiler.start_trace(str(self.folder))
            self._is_tracing = True

    def step(self, number: int) -> contextlib.AbstractContextManager:
        """A context in which a step is sent out, known to the trace by its number."""
        if not self._is_tracing:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def stop(self) -> bool:
        """Writes the trace, if there is one; returns whether there was."""
        was_tracing, self._is_tracing = self._is_tracing, False
        if was_tracing:
            jax.profiler.stop_trace()
        return was_tracing
