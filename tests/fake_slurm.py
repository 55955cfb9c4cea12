"""A cluster of one node: the commands of Slurm that submitit calls.

``python fake_slurm.py sbatch ARGUMENTS`` is sbatch, and so on. A job really
runs, as processes of this machine. The folder in the variable FAKE_SLURM has
a folder for each job, with its script and its state.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

FOLDER, PARTITION = 'FAKE_SLURM', 'gpu'
COMMANDS = ('sbatch', 'srun', 'sacct', 'scancel', 'scontrol')


def jobs():
    return Path(os.environ[FOLDER])


def descendants(process):
    """The processes that a process has started, also indirectly."""
    parents = {}
    for file in Path('/proc').glob('[0-9]*/stat'):
        with suppress(OSError):
            # The name of the command may contain spaces.
            parent = int(file.read_text().rsplit(')', 1)[1].split()[1])
            parents.setdefault(parent, []).append(int(file.parent.name))
    found = [process]
    for one in found:
        found += parents.get(one, [])
    return found[1:]


def send(processes, number):
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def sbatch(*arguments):
    options = arguments
    if '--test-only' not in arguments:
        options = re.findall('^#SBATCH (.+)$', Path(arguments[0]).read_text(), re.M)
    if f'--partition={PARTITION}' not in options:
        sys.exit('sbatch: error: invalid partition specified')
    if '--test-only' in arguments:
        return
    number = 1 + len(list(jobs().iterdir()))
    folder = jobs() / str(number)
    folder.mkdir()
    (folder / 'script').write_text(Path(arguments[0]).read_text())
    (folder / 'state').write_text('PENDING')
    subprocess.Popen(
        [sys.executable, __file__, 'node', folder],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    print(f'Submitted batch job {number}')


def node(folder):
    """Run a job to its end, again after it was requeued."""
    folder = Path(folder)
    requeue, cancel, preempt = (
        folder / name for name in ('requeue', 'cancel', 'preempt')
    )
    while True:
        (folder / 'state').write_text('RUNNING')
        environment = dict(
            os.environ, SLURM_JOB_ID=folder.name, SLURM_JOB_NUM_NODES='1'
        )
        script = subprocess.Popen(['bash', folder / 'script'], env=environment)
        (folder / 'process').write_text(str(script.pid))
        while script.poll() is None:
            if requeue.exists() or cancel.exists() or preempt.exists():
                if cancel.exists():
                    send(descendants(script.pid), signal.SIGTERM)
                time.sleep(0.3)
                send([*descendants(script.pid), script.pid], signal.SIGKILL)
                script.wait()
            time.sleep(0.02)
        if not requeue.exists():
            break
        requeue.unlink()
    state = 'FAILED' if script.returncode else 'COMPLETED'
    if preempt.exists():
        state = 'PREEMPTED'
    elif cancel.exists():
        state = 'CANCELLED by 0'
    (folder / 'state').write_text(state)


def srun(*arguments):
    options = dict(zip(arguments[1:4:2], arguments[2:5:2]))
    for number, name in ((1, '--output'), (2, '--error')):
        file = options[name].replace('%j', os.environ['SLURM_JOB_ID'])
        os.dup2(
            os.open(file.replace('%t', '0'), os.O_CREAT | os.O_APPEND | os.O_WRONLY),
            number,
        )
    os.environ.update(SLURM_NTASKS='1', SLURM_PROCID='0', SLURM_LOCALID='0')
    os.execvp(arguments[5], arguments[5:])


def sacct(*arguments):
    print('JobID|State|NodeList')
    for flag, number in zip(arguments, arguments[1:]):
        if flag == '-j':
            print(f'{number}|{(jobs() / number / "state").read_text()}|node1')


def scancel(number, *signals):
    folder = jobs() / number
    if not signals:
        (folder / 'cancel').touch()
        return
    # The script itself gets no signals.
    script = int((folder / 'process').read_text())
    name = signals[-1].removeprefix('SIG')
    send(descendants(script), getattr(signal, f'SIG{name}'))


def scontrol(_, number):
    (jobs() / number / 'requeue').touch()


if __name__ == '__main__':
    globals()[sys.argv[1]](*sys.argv[2:])
