"""The processes of a comparison: a lock on its folder, and its trainings."""

import fcntl
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import torch

from mmpsbn.compare import tether
from mmpsbn.errors import InputError

LOCK = 'lock'
GRACE = 60  # Seconds until an interrupted child is killed.
# The first line of torch's launcher after its children have ended, and its
# line about the first child that failed.
LAUNCHER = re.compile(r'^.*torch.distributed.elastic.*$', re.MULTILINE)
CHILD_ENDED = re.compile(r'failed \(exitcode: (-?\d+)\) local_rank')
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
    output: IO,
    lock: IO,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen:
    """Start or resume the training of a config, in the folder of the config.

    The child ends when the thread that calls this function ends, so that
    thread has to wait for the child, see :mod:`.tether`. The child holds the
    lock, too.
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
    command += [str(config), '--work-dir', str(config.parent), '--resume']
    return subprocess.Popen(
        [sys.executable, tether.__file__, *command],
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=[lock.fileno()],
        start_new_session=True,  # So Ctrl-C reaches only this process.
        env={**os.environ, **(environment or {}), tether.PARENT: str(os.getpid())},
    )


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
    ended = CHILD_ENDED.search(output)
    if ended:
        status = int(ended[1])
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
