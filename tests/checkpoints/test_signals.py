import os
import signal

import pytest

from vit_jax.checkpoints.signals import SignalRecorder


@pytest.fixture
def sighup_not_ignored():
    """Restores the default of a process that was not started by `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("sighup_not_ignored")
@pytest.mark.parametrize("number", SignalRecorder.SIGNALS)
def test_signal_recorder_keeps_the_first_signal(number):
    """A terminal that is closed sends SIGHUP more than once; a scheduler may repeat SIGUSR1."""
    with SignalRecorder() as recorder:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert recorder.received is number


def test_signal_recorder_keeps_sighup_ignored():
    """`nohup` ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalRecorder() as recorder:
            os.kill(os.getpid(), signal.SIGHUP)
        assert recorder.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
