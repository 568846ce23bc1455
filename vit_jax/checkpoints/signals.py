"""Turns SIGTERM and Ctrl-C into a flag that the training loop looks at between steps."""

import os
import signal
import threading


def named(number: int) -> signal.Signals | None:
    """The signal of that number; None for 0."""
    return signal.Signals(number) if number else None


class Interrupts:
    """A context in which the first signal sets `received` and a second one ends the process."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received: signal.Signals | None = None
        self._before: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Others may not install any.
            self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            # None stands for one that was not installed by Python, as TPU runtimes do.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number, _frame):
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number)
