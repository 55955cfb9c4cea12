"""Trainings in several processes that resume after an interruption."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mmpsbn.files import write_atomically

from .settings import key_of, tree_of

RESULTS = 'results.jsonl'


def read_results(file: Path) -> dict[str, dict]:
    """Results by the key of their settings.

    A line that a kill has cut short is taken out.
    """
    text = file.read_text() if file.exists() else ''
    whole = text[: text.rfind('\n') + 1]
    if whole != text:
        write_atomically(file, whole.encode())
    lines = [json.loads(line) for line in whole.splitlines()]
    return {
        json.dumps(line['settings'], sort_keys=True): line['result'] for line in lines
    }


def train_all(
    waves: Sequence[tuple[Callable, Sequence[NamedTuple]]],
    results: dict[str, dict],
    file: Path,
    processes: int,
    told: Callable[[NamedTuple, dict], str],
) -> None:
    """Run trainings, and add a line to the file as each one ends.

    Args:
        waves (list[tuple]): A function from settings to a result, and the
            settings that it is called with. Each wave begins when the one
            before it has ended.
        results (dict): By the key of the settings; the new ones are added.
        file (Path): With a line for each result.
        processes (int): How many trainings at a time.
        told (callable): What is printed of settings and their result.
    """
    count = sum(len(jobs) for _, jobs in waves)
    if not count:
        print('Every training has its result.')
        return
    print(f'{count} trainings, {processes} at a time', flush=True)
    begin, done = time.monotonic(), 0
    with open(file, 'a') as lines:
        for job, result in in_processes(waves, processes):
            lines.write(json.dumps(dict(settings=tree_of(job), result=result)) + '\n')
            lines.flush()
            results[key_of(job)] = result
            done += 1
            left = (time.monotonic() - begin) * (count / done - 1)
            print(
                f'{done}/{count}: {told(job, result)}, '
                f'{result["seconds"]:.0f} s; {left / 60:.1f} min '
                'left',
                flush=True,
            )


def in_processes(
    waves: Sequence[tuple[Callable, Sequence]], processes: int
) -> Iterator[tuple]:
    """Iterate over jobs and their results in the order in which they end.

    After an error or Ctrl-C, the jobs that have not ended are stopped. The
    workers do not receive Ctrl-C, which would print their tracebacks.

    Args:
        waves (list[tuple]): See :func:`train_all`.
        processes (int): The number of jobs that run in parallel.
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
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
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
