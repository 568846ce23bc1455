"""Recording of signals that ask a run to end, so that training can stop between two steps."""

import os
import signal
import threading


def signal_from_number(number: int) -> signal.Signals | None:
    """Returns the signal of a number, or None for 0."""
    return signal.Signals(number) if number else None


class SignalRecorder:
    """Context manager that records the first signal of SIGNALS in `received`.

    A second SIGTERM or SIGINT ends the process at once. A terminal that is closed may send SIGHUP
    several times, and none if it is ignored, as by `nohup`. Job schedulers can be asked to send
    SIGUSR1; `mpirun` passes it on at once, but SIGTERM only after a delay.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    REPEATED = (signal.SIGHUP, signal.SIGUSR1)  # A second one does not end the process.

    def __init__(self):
        self.received: signal.Signals | None = None
        self._previous: dict = {}

    def __enter__(self):
        # Python allows signal handlers to be installed by the main thread only.
        if threading.current_thread() is threading.main_thread():
            is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            numbers = [n for n in self.SIGNALS if n != signal.SIGHUP or not is_nohup]
            self._previous = {n: signal.signal(n, self._handle) for n in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            # None: the handler was not installed by Python; TPU runtimes install such handlers.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number, _frame):
        if self.received is None:
            self.received = signal.Signals(number)
        elif number not in self.REPEATED:
            os._exit(128 + number)
