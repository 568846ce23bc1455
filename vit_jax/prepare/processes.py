"""Work for a pool of processes that end when, and as soon as, their parent does."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection

from vit_jax.checkpoints.signals import SignalRecorder
from vit_jax.errors import DataError, Interrupted


def run(calls: Iterable[Callable], workers: int) -> Iterator:
    """Yields what the calls return, as they finish.

    Raises Interrupted after a signal, and DataError where a process was killed; no call runs on
    after an error.
    """
    spawn = multiprocessing.get_context("spawn")  # A fork would copy locks that threads hold.
    others = set(multiprocessing.active_children())
    pool = futures.ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin)
    with SignalRecorder() as interrupts:
        try:
            pending = {pool.submit(call) for call in calls}
            while pending:
                done, pending = futures.wait(pending, 0.2, futures.FIRST_COMPLETED)
                if interrupts.received is not None:
                    raise Interrupted(
                        "stopped; the same command goes on from here.", interrupts.received
                    )
                for future in done:
                    yield future.result()
        except BaseException as error:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            if not isinstance(error, BrokenProcessPool):
                raise
            raise DataError(
                "a worker process was killed, perhaps for want of memory; the same command goes "
                "on from here, and --workers=N takes fewer processes."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to answer.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
