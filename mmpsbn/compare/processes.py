"""The processes of a comparison: one for each folder, and its children."""

import fcntl
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from mmpsbn.compare import tether
from mmpsbn.errors import InputError

LOCK = 'lock'
GRACE = 60  # Seconds that an interrupted child has to end.
# What torch's launcher prints after its children, and of the first that ended.
LAUNCHER = re.compile(r'^.*torch.distributed.elastic.*$', re.MULTILINE)
CHILD_ENDED = re.compile(r'failed \(exitcode: (-?\d+)\) local_rank')
ADVICE = {
    signal.SIGKILL: 'The usual reason is that the machine ran out of memory; '
    'lower the batch size, num_workers of the data loaders, '
    'or --at-once.',
    signal.SIGBUS: 'The usual reason is that shared memory (/dev/shm) is '
    'full; enlarge it, or lower num_workers of the data '
    'loaders.',
}


def lock_folder(folder: Path) -> IO:
    """Hold a folder until this process and its children have ended.

    Returns:
        The lock; the folder is free once the file is closed everywhere.

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


def start(
    command: Sequence[str],
    output: IO,
    lock: IO,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen:
    """Start a Python that ends with this process, see :mod:`.tether`.

    Linux ends it with the thread that calls this function, so that thread has
    to wait for the child.

    Args:
        command (list[str]): The arguments of the Python.
        output (file): Takes what it prints.
        lock (file): See :func:`lock_folder`; the child holds it, too.
        environment (dict, optional): Variables to set.
    """
    return subprocess.Popen(
        [sys.executable, tether.__file__, *command],
        stdout=output,
        stderr=subprocess.STDOUT,
        pass_fds=[lock.fileno()],
        start_new_session=True,  # Ctrl-C reaches it only through `interrupt`.
        env={**os.environ, **(environment or {}), tether.PARENT: str(os.getpid())},
    )


def interrupt(child: subprocess.Popen) -> None:
    """End a child as Ctrl-C does, or kill it if that takes too long."""
    if child.poll() is None:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def explain_exit(status: int, output: str) -> str:
    """Describe why a child failed.

    Args:
        status (int): Its exit status; negative for a signal.
        output (str): What it printed.
    """
    ended = CHILD_ENDED.search(output)
    if ended:
        status = int(ended[1])
    if status < 0:
        names = {number: number.name for number in signal.Signals}
        return (
            f'killed by signal {-status} '
            f'({names.get(-status, "unknown")}). '
            f'{ADVICE.get(-status, "")}'
        ).strip()
    lines = LAUNCHER.split(output)[0].strip().splitlines() or ['no output']
    if ended:  # Other processes may have printed something since.
        errors = [line for line in lines if line.startswith('error: ')]
        lines = errors or lines
    return lines[-1]
