"""Jobs in several processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from mmpsbn.errors import InputError


def in_processes(
    waves: Sequence[tuple[Callable, Sequence]], processes: int
) -> Iterator[tuple]:
    """Iterate over jobs and their results in the order in which they end.

    After an error or Ctrl-C, the jobs that have not ended are stopped. The
    workers do not receive Ctrl-C, which would print their tracebacks.

    Args:
        waves (list[tuple]): A function of a job, and the jobs that it is called
            with. Each wave begins when the one before it has ended.
        processes (int): The number of jobs that run in parallel.

    Raises:
        InputError: If the system has stopped a process.
    """
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context('spawn'), _end_with_parent
    ) as pool:
        try:
            for function, jobs in waves:
                with _blocking_interrupts():
                    futures = {pool.submit(function, job): job for job in jobs}
                for future in as_completed(futures):
                    yield futures[future], future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            if isinstance(error, BrokenProcessPool):
                raise InputError(
                    'there is not enough memory for this many trainings in parallel, '
                    'or the system has stopped one. Lower --processes; the command '
                    'resumes.'
                ) from error
            raise


@contextmanager
def _blocking_interrupts() -> Iterator[None]:
    """Delay Ctrl-C. Processes that are started meanwhile never receive it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """End a worker if its parent is killed."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
