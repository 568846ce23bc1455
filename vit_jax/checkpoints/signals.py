"""Recording of SIGTERM and Ctrl-C, so that the training loop can stop between two steps."""

import os
import signal
import threading


def signal_from_number(number: int) -> signal.Signals | None:
    """Returns the signal of a number, or None for 0."""
    return signal.Signals(number) if number else None


class SignalRecorder:
    """Context manager that records the first SIGTERM or SIGINT in `received`.

    A second signal ends the process at once.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received: signal.Signals | None = None
        self._previous: dict = {}

    def __enter__(self):
        # Python allows signal handlers to be installed by the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._handle) for n in self.SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            # None: the handler was not installed by Python; TPU runtimes install such handlers.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number, _frame):
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number)
