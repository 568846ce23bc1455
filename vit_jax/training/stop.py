"""The signal that stops a run between two steps, in all of its processes."""

from signal import Signals

import jax
import numpy as np

from vit_jax.checkpoints.signals import SignalRecorder, signal_from_number
from vit_jax.distributed import multihost


class StopSignal:
    """True after a signal; several processes agree on it, so that all stop at one step."""

    def __init__(self, recorder: SignalRecorder):
        self._recorder = recorder
        self._agreed: Signals | None = None

    def __bool__(self) -> bool:
        return self.received is not None

    @property
    def received(self) -> Signals | None:
        """The signal that ends the run; with several processes, the one that they agreed on."""
        return self._recorder.received if jax.process_count() == 1 else self._agreed

    @property
    def number(self) -> int:
        """Number of the signal that this process received, or 0; sent to all with each step."""
        return self._recorder.received or 0

    @property
    def is_received_here(self) -> bool:
        """True if this process has received a signal."""
        return self._recorder.received is not None

    def agree(self, numbers: np.ndarray) -> None:
        """Takes the signal numbers of all processes; the first that is not 0 stops the run."""
        self._agreed = self._agreed or signal_from_number(int(np.max(numbers)))

    def exchange(self) -> Signals | None:
        """Exchanges the signals of all processes now; returns the one that stops the run."""
        self._agreed = signal_from_number(np.max(multihost.allgather(self.number)))
        return self._agreed
