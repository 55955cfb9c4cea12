"""The processes of a comparison: a lock on its folder, and its trainings."""

import fcntl
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch

from mmpsbn.compare import tether
from mmpsbn.errors import InputError
from mmpsbn.files import write_atomically
from mmpsbn.hooks.non_finite_hook import DIVERGED

# Files in the folder of a run.
LOCK, OUTPUT, SECONDS = 'lock', 'output.txt', 'seconds.txt'
KILL_WAIT = 600  # Seconds until a preempted job must have been killed.
GRACE = 60  # Seconds until an interrupted child is killed.
# The first line of torch's launcher after its children have ended, and its
# lines about the children that failed, the first one first.
LAUNCHER = re.compile(r'^.*torch.distributed.elastic.*$', re.MULTILINE)
CHILD_ENDED = re.compile(r'exitcode *: (-?\d+)')
ADVICE = {
    signal.SIGKILL: 'The usual reason is that the machine ran out of memory; lower '
    'the batch size, num_workers of the data loaders, or --at-once.',
    signal.SIGBUS: 'The usual reason is that shared memory (/dev/shm) is full; '
    'enlarge it, or lower num_workers of the data loaders.',
}


def lock_folder(folder: Path) -> IO:
    """Hold a folder until all processes with the returned file have ended.

    Raises:
        InputError: If another process holds the folder.
        OSError: If the folder cannot be locked.
    """
    lock = open(folder / LOCK, 'a+')
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read() or 'another process'
        lock.close()
        raise InputError(
            f'the work dir {folder} is in use by {holder}: two comparisons '
            'in one folder would overwrite their runs. Wait until it has '
            'ended, end it, or choose another folder with --work-dir.'
        ) from error
    lock.truncate(0)
    lock.write(f'process {os.getpid()} on {platform.node()}')
    lock.flush()
    return lock


def start_training(
    config: Path,
    processes: int,
    environment: dict[str, str] | None = None,
    locks: Sequence[IO] = (),
) -> subprocess.Popen:
    """Start or resume the training of a config, in the folder of the config.

    The child ends when the thread that calls this function ends, so that
    thread has to wait for the child, see :mod:`.tether`. The child holds the
    lock of the folder, and the given ones.

    Raises:
        InputError: If another training in the folder has not ended.
    """
    package = Path(__file__).resolve().parent.parent
    tools = package.parent / 'tools'
    if not tools.is_dir():  # The package is installed.
        tools = package / '.mim' / 'tools'
    command = [str(tools / 'train.py')]
    if processes > 1:
        launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node']
        command = [*launcher, str(processes), tether.__file__, *command]
        command += ['--launcher=pytorch']
    folder = config.parent
    command += [str(config), '--work-dir', str(folder), '--resume']
    with lock_folder(folder) as lock, open(folder / OUTPUT, 'w') as output:
        (folder / DIVERGED).unlink(missing_ok=True)
        return subprocess.Popen(
            [sys.executable, tether.__file__, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[held.fileno() for held in (lock, *locks)],
            start_new_session=True,  # So Ctrl-C reaches only this process.
            env={**os.environ, **(environment or {}), tether.PARENT: str(os.getpid())},
        )


def run_training(
    config: Path, processes: int, environment: dict[str, str] | None = None
) -> tuple[int, str]:
    """Train a config to its end, as a job on a cluster.

    Returns:
        tuple: The exit status, and the name of the device.

    Raises:
        InputError: If another training in the folder has not ended.
    """
    preempted = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: preempted.set())
    with count_seconds(config.parent):
        child = start_training(config, processes, environment)
        try:
            status = child.wait()
            # Slurm sends the signals of preemption to all processes of a job. The
            # training may end first. Then this process must not report its end.
            time.sleep(1)
            if status and preempted.is_set():
                time.sleep(KILL_WAIT)
        finally:
            interrupt_child(child)
    return status, name_device()


def name_device() -> str:
    """Return the name of the GPU of a training, or ``'CPU'``."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'


@contextmanager
def count_seconds(folder: Path) -> Iterator[None]:
    """Add the time in this context to the seconds of a run."""
    begin, before = time.monotonic(), read_seconds(folder)
    try:
        yield
    finally:
        seconds = before + time.monotonic() - begin
        write_atomically(folder / SECONDS, str(seconds).encode())


def read_seconds(folder: Path) -> float:
    """Return for how many seconds a run has trained."""
    file = folder / SECONDS
    return float(file.read_text()) if file.exists() else 0.0


def interrupt_child(child: subprocess.Popen) -> None:
    """End a child as Ctrl-C does, or kill it if that takes too long."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def explain_exit(status: int, output: str) -> str:
    """Describe why a child failed, from its exit status and its output."""
    ended = list(map(int, CHILD_ENDED.findall(output)))
    if ended:
        # If one is killed, the others fail because it does not answer.
        status = next((own for own in ended if -own in ADVICE), ended[0])
    if status < 0:
        name = next((x.name for x in signal.Signals if x == -status), 'unknown')
        advice = ADVICE.get(-status, '')
        return f'killed by signal {-status} ({name}). {advice}'.strip()
    lines = LAUNCHER.split(output)[0].strip().splitlines() or ['no output']
    if ended:  # Other processes may have printed something afterwards.
        errors = [line for line in lines if line.startswith('error: ')]
        lines = errors or lines
    return lines[-1]


def divide_machine(at_once: int, processes: int) -> list[dict[str, str]]:
    """Divide the cores, and the GPUs if there are any, among parallel runs.

    If there are more runs than GPUs, the runs share them, which is faster for
    small detectors.

    Returns:
        list[dict[str, str]]: The environment variables of each parallel run.
        Variables that the user has set are not changed.

    Raises:
        InputError: If there are fewer GPUs than processes of one run.
    """
    if at_once == 1:
        return [{}]
    threads = max(1, len(os.sched_getaffinity(0)) // at_once // processes)
    shared = dict(OMP_NUM_THREADS=os.environ.get('OMP_NUM_THREADS', str(threads)))
    gpus = torch.cuda.device_count()
    if not gpus:
        return [shared] * at_once
    if gpus < processes:
        raise InputError(
            f'--processes {processes} needs {processes} GPUs; there are '
            f'{gpus}. Lower --processes.'
        )
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = visible.split(',') if visible else list(map(str, range(gpus)))
    starts = [n % (gpus // processes) * processes for n in range(at_once)]
    return [
        dict(shared, CUDA_VISIBLE_DEVICES=','.join(names[start:][:processes]))
        for start in starts
    ]
