"""Functions as jobs on a cluster, submitted and watched through submitit."""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mmpsbn.errors import InputError
from mmpsbn.files import write_atomically
from mmpsbn.stack import check_packages

MINUTES = 24 * 60
TIMEOUTS = 20  # How often a job is submitted again at its time limit.
PREEMPTED = 'PREEMPTED'
REQUEUE_WAIT = 300  # Seconds until a preempted job counts as canceled.
PATIENCE = 60  # Seconds until a command of Slurm must have answered.
COMMANDS = ('sbatch', 'srun', 'sacct', 'scancel')
GPUS = 'CUDA_VISIBLE_DEVICES'
# The last line of a traceback.
ERROR = re.compile(r'^[\w.]+: (.+)$', re.MULTILINE)


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that :func:`make_cluster` reads."""
    group = parser.add_argument_group(
        'cluster',
        'Jobs of Slurm train the runs. This command submits and watches them. A job\n'
        'is requeued after preemption and at its time limit, and its run resumes\n'
        'from the last checkpoint. Ctrl-C cancels the jobs. All nodes need the same\n'
        'files: the work dir, the data and the Python environment.',
    )
    group.add_argument(
        '--cluster',
        choices=('slurm', 'local'),
        help='submit runs through submitit; "local" tries this without Slurm',
    )
    group.add_argument('--partition', help='partition of the jobs')
    group.add_argument(
        '--time',
        metavar='LIMIT',
        help='time limit of a job in minutes, or as [D-]HH:MM:SS; by default 24 hours',
    )
    group.add_argument(
        '--sbatch',
        nargs='+',
        metavar='KEY=VALUE',
        help='other options of sbatch, such as account=NAME gres=gpu:a100:1',
    )


def make_cluster(
    args: argparse.Namespace, folder: Path, *, gpus: int, cpus: int
) -> 'Cluster | None':
    """Return the cluster of a command line; None without ``--cluster``.

    Args:
        args (argparse.Namespace): See :func:`add_cluster_arguments`.
        folder (Path): Takes the logs of the jobs.
        gpus (int): The GPUs of a job, unless ``--sbatch`` has others.
        cpus (int): The CPUs of a job, likewise.

    Raises:
        InputError: If an argument is invalid, or the cluster cannot be used.
    """
    allowed = {'slurm': ('partition', 'sbatch', 'time'), 'local': ('time',)}
    for name in allowed['slurm']:
        given = getattr(args, name)
        if given is not None and name not in allowed.get(args.cluster, ()):
            words = given if isinstance(given, str) else ' '.join(given)
            raise InputError(
                f'--{name} {words} has no effect without --cluster slurm. '
                f'Add --cluster slurm, or leave --{name} out.'
            )
    if args.cluster is None:
        return None
    minutes = MINUTES if args.time is None else _parse_minutes(args.time)
    options: dict[str, str | bool] = {'cpus-per-task': str(cpus)}
    if args.partition:
        options['partition'] = args.partition
    for option in args.sbatch or []:
        key, separator, value = option.partition('=')
        options[key.replace('_', '-')] = value if separator else True
    if not any(key == 'gres' or key.startswith('gpus') for key in options):
        options['gpus-per-node'] = str(gpus)
    return Cluster(args.cluster, folder, minutes, options)


def _parse_minutes(limit: str) -> int:
    match = re.fullmatch(r'(\d+)|(?:(\d+)-)?(\d+):(\d\d):(\d\d)', limit)
    minutes, days, hours, rest, seconds = (
        int(part or 0) for part in (match.groups() if match else '00000')
    )
    minutes += 60 * (24 * days + hours) + rest + (seconds > 0)
    if minutes < 1:
        raise InputError(
            f'--time {limit} is not a time limit: give minutes, or [D-]HH:MM:SS, '
            'and at least one minute.'
        )
    return minutes


class Cluster:
    """Runs functions as jobs of Slurm, or of submitit's local executor.

    A job is requeued after preemption and at its time limit, and calls its
    function again, which has to resume. Its id is recorded, so a command that
    was killed finds its jobs when it is repeated.

    Args:
        kind (str): ``'slurm'`` or ``'local'``.
        folder (Path): Takes the logs of the jobs. All nodes need to share it.
        minutes (int): The time limit of a job.
        options (dict): The options of sbatch by their names; True for those
            without a value.

    Raises:
        InputError: If submitit is not installed, or Slurm does not accept
            such a job.
    """

    def __init__(
        self, kind: str, folder: Path, minutes: int, options: dict[str, str | bool]
    ) -> None:
        check_packages(f'--cluster {kind}', 'cluster', 'submitit')
        self._kind, self._folder, self._minutes = kind, folder, minutes
        # A cluster may forbid by default that jobs are requeued.
        self._options = dict(options, requeue=True)
        self._executor: Any = None
        # Threads share submitit's list of jobs.
        self._lock = threading.Lock()
        if kind == 'slurm':
            self._check_slurm()
        else:
            # Local jobs are canceled by Ctrl-C, which they must not inherit as
            # ignored from a command in the background of a shell script.
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _check_slurm(self) -> None:
        """Raise unless Slurm would accept a job and reports its state."""
        missing = [name for name in COMMANDS if shutil.which(name) is None]
        if missing:
            raise InputError(
                f'--cluster slurm needs the command {missing[0]}, which was not found: '
                'this machine is not part of a Slurm cluster. Repeat the command on '
                'a login node, or leave --cluster out to train here.'
            )
        options = [
            f'--{key}' if value is True else f'--{key}={value}'
            for key, value in self._options.items()
        ]
        test = ['sbatch', '--test-only', f'--time={self._minutes}', *options]
        for command in ([*test, '--wrap=true'], ['sacct', '--starttime=now']):
            try:
                result = subprocess.run(
                    command, capture_output=True, text=True, timeout=PATIENCE
                )
            except subprocess.TimeoutExpired:
                answer = f'no answer in {PATIENCE} seconds'
            else:
                if result.returncode == 0:
                    continue
                answer = ' '.join((result.stderr + result.stdout).split())
            raise InputError(
                f'the Slurm cluster cannot be used: `{shlex.join(command)}` failed '
                f'({answer}). Change --partition, --time or --sbatch, or ask the '
                'administrators if the cluster does not respond.'
            )

    def _start_executor(self):
        import submitit

        if self._kind == 'slurm':
            executor = submitit.SlurmExecutor(self._folder, max_num_timeout=TIMEOUTS)
            executor.update_parameters(
                job_name='mmpsbn',
                time=self._minutes,
                wckey=None,  # submitit's own, which few clusters know.
                additional_parameters=self._options,
            )
        else:
            executor = submitit.LocalExecutor(self._folder, max_num_timeout=TIMEOUTS)
            executor.update_parameters(timeout_min=self._minutes)
        return executor

    def start(self, record: Path, function: Callable[[], Any]) -> 'Job':
        """Submit a function as a job.

        Args:
            record (Path): The file that records the job until its result is
                read. If it names a job that has not ended, or whose result was
                not read, no other job is submitted.
            function (callable): Is called without arguments, again after each
                interruption. It can be pickled.

        Raises:
            InputError: If Slurm refuses the job.
        """
        with self._lock:
            # It makes the folder, which is too early in __init__.
            self._executor = self._executor or self._start_executor()
            if record.exists():
                job = self._executor.job_class(self._folder, record.read_text())
                if job.paths.result_pickle.exists() or not job.done(force_check=True):
                    return Job(self, record, function, job)
            return Job(self, record, function, self._submit(record, function))

    def _submit(self, record: Path, function: Callable[[], Any]):
        from submitit.helpers import FunctionSequence

        if self._kind == 'local':
            function = partial(_with_gpus, os.environ.get(GPUS), function)
        resumable = FunctionSequence()
        resumable.add(function)
        try:
            job = self._executor.submit(resumable)
        except RuntimeError as error:
            raise InputError(
                f'sbatch refused a job: {error}. The limits of the cluster may '
                'be exceeded; repeat the command later.'
            ) from error
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(record, job.job_id.encode())
        return job

    def call(self, record: Path, function: Callable[[], Any]) -> Any:
        """Return the result of a function that runs as a job, see :meth:`start`."""
        job = self.start(record, function)
        try:
            while not job.has_ended():
                time.sleep(1)
        except BaseException:
            job.cancel()
            raise
        return job.result()


def _with_gpus(visible: str | None, function: Callable[[], Any]) -> Any:
    """Call a function with the GPUs that submitit's local executor hides."""
    os.environ.pop(GPUS, None)
    if visible is not None:
        os.environ[GPUS] = visible
    return function()


class Job:
    """A job of a :class:`Cluster`, see :meth:`Cluster.start`."""

    def __init__(
        self, cluster: Cluster, record: Path, function: Callable[[], Any], job
    ) -> None:
        self._cluster, self._record, self._function = cluster, record, function
        self._job, self._preempted = job, None

    def has_ended(self) -> bool:
        """Return whether the job has ended, and submit it again if it was preempted.

        Some clusters cancel preempted jobs instead of requeuing them.
        """
        with self._cluster._lock:
            if self._job.done():
                return True
            if self._job.state != PREEMPTED:
                self._preempted = None
            elif self._preempted is None:
                self._preempted = time.monotonic()
            elif time.monotonic() - self._preempted > REQUEUE_WAIT:
                self._preempted = None
                if self._job.get_info(mode='force').get('State') == PREEMPTED:
                    self.cancel()
                    self._job = self._cluster._submit(self._record, self._function)
        return False

    def result(self) -> Any:
        """Return the result of a job that has ended.

        Raises:
            InputError: If the job failed, with the reason.
        """
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            (result,) = self._job.result()
        except FailedJobError as error:
            reason = (ERROR.findall(str(error)) or ['unknown error'])[-1]
            raise InputError(
                f'job {self._job.job_id} failed: {reason.rstrip(".")}. Its messages '
                f'are in {self._job.paths.stderr}. Correct the cause, and repeat the '
                'command.'
            ) from error
        except UncompletedJobError as error:
            self.cancel()  # It may be requeued.
            raise InputError(
                f'job {self._job.job_id} ended in the state {self._job.state} and has '
                f'no result. Its messages are in {self._job.paths.stderr}. Correct '
                'the cause, and repeat the command.'
            ) from error
        finally:
            self._record.unlink(missing_ok=True)
        return result

    def cancel(self) -> None:
        """Cancel the job, and wait for its end if it is local."""
        from submitit import LocalJob

        self._job.cancel(check=False)
        if isinstance(self._job, LocalJob):
            self._job.wait()


def run_jobs(
    cluster: Cluster,
    function: Callable[[Any], Any],
    inputs: list,
    record_of: Callable[[Any], Path],
    at_once: int,
):
    """Iterate over inputs and their results in the order in which jobs end.

    After an error or Ctrl-C, the jobs that have not ended are canceled.

    Args:
        cluster (Cluster): Runs the jobs.
        function (callable): Turns an input into a result.
        inputs (list): The inputs.
        record_of (callable): The record of an input, see :meth:`Cluster.start`.
        at_once (int): The number of parallel jobs.
    """
    waiting, running = list(inputs), []
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                one = waiting.pop(0)
                job = cluster.start(record_of(one), partial(function, one))
                running.append((one, job))
            time.sleep(1)
            for one, job in [item for item in running if item[1].has_ended()]:
                running.remove((one, job))
                yield one, job.result()
    except BaseException:
        for _, job in running:
            job.cancel()
        raise
