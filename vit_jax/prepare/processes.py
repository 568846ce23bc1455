"""Pool of worker processes that end as soon as their parent process ends."""

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


def run_in_processes(calls: Iterable[Callable], workers: int) -> Iterator:
    """Yields the results of calls as they finish, in worker processes.

    All worker processes are terminated after an error.

    Args:
      calls: picklable functions without arguments.
      workers: number of processes.

    Raises:
      Interrupted: this process received SIGTERM, SIGINT or SIGHUP.
      DataError: a worker process was killed.
    """
    # Not fork, which would copy locks that other threads hold.
    spawn = multiprocessing.get_context("spawn")
    other_children = set(multiprocessing.active_children())
    pool = futures.ProcessPoolExecutor(workers, mp_context=spawn, initializer=_init_worker)
    with SignalRecorder() as signals:
        try:
            pending = {pool.submit(call) for call in calls}
            while pending:
                done, pending = futures.wait(pending, 0.2, futures.FIRST_COMPLETED)
                if signals.received is not None:
                    raise Interrupted("interrupted; the same command resumes.", signals.received)
                for future in done:
                    yield future.result()
        except BaseException as error:
            for process in set(multiprocessing.active_children()) - other_children:
                process.terminate()
            if not isinstance(error, BrokenProcessPool):
                raise
            raise DataError(
                "a worker process was killed, possibly because memory was exhausted; the same "
                "command resumes, and --workers=N uses fewer processes."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _init_worker() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # The parent handles them.
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
