"""Jobs on a cluster: submitted, watched, requeued, canceled and found again.

No test has a real Slurm. They submit to one of their own, see fake_slurm.py.
"""

import json
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser
from functools import partial

import fake_slurm
import pytest
from helpers import COMPARE, SHORT, wait_for
from submitit import SlurmJob
from test_compare_processes import processes_of

from mmpsbn.cluster import add_cluster_arguments, make_cluster, run_jobs
from mmpsbn.errors import InputError


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A cluster with the partition "gpu"; the folder of its jobs."""
    programs, jobs = tmp_path / 'bin', tmp_path / 'slurm'
    programs.mkdir()
    jobs.mkdir()
    for name in fake_slurm.COMMANDS:
        program = programs / name
        start = f'exec {sys.executable} {fake_slurm.__file__} {name}'
        program.write_text(f'#!/bin/sh\n{start} "$@"\n')
        program.chmod(0o755)
    monkeypatch.setenv('PATH', f'{programs}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv(fake_slurm.FOLDER, str(jobs))
    monkeypatch.setattr(SlurmJob.watcher, '_delay_s', 0)
    monkeypatch.setattr(SlurmJob, '_results_timeout_s', 0)
    SlurmJob.watcher._registered.clear()
    SlurmJob.watcher.clear()
    yield jobs
    for job in jobs.iterdir():
        (job / 'cancel').touch()
        wait_for(lambda: state(job) not in ('PENDING', 'RUNNING'))


def state(job):
    return (job / 'state').read_text()


def cluster_of(folder, *arguments):
    parser = ArgumentParser()
    add_cluster_arguments(parser)
    return make_cluster(parser.parse_args(arguments), folder, gpus=2, cpus=10)


def on_slurm(folder, *arguments):
    return cluster_of(folder, '--cluster', 'slurm', '--partition', 'gpu', *arguments)


def test_options_of_a_job(slurm, tmp_path):
    options = ['--time', '1-02:03:04', '--sbatch', 'account=vision', 'exclusive']
    cluster = on_slurm(tmp_path / 'jobs', *options)
    assert cluster.call(tmp_path / 'one', partial(operator.add, 1, 2)) == 3
    script = (slurm / '1' / 'script').read_text().splitlines()
    assert {
        '#SBATCH --partition=gpu',
        f'#SBATCH --time={26 * 60 + 4}',
        '#SBATCH --gpus-per-node=2',
        '#SBATCH --cpus-per-task=10',
        '#SBATCH --account=vision',
        '#SBATCH --exclusive',
        '#SBATCH --requeue',
    } < set(script)
    assert not (tmp_path / 'one').exists()
    cluster = on_slurm(
        tmp_path / 'jobs', '--sbatch', 'gres=gpu:a100:1', 'cpus_per_task=4'
    )
    assert cluster.call(tmp_path / 'two', partial(operator.add, 1, 2)) == 3
    script = (slurm / '2' / 'script').read_text()
    assert '--gpus-per-node' not in script
    assert '--gres=gpu:a100:1\n' in script and '--cpus-per-task=4\n' in script


def test_why_a_job_has_failed(slurm, tmp_path):
    cluster = on_slurm(tmp_path / 'jobs')
    with pytest.raises(
        InputError, match='^job 1 failed: Expecting property name.*1_0_log.err'
    ):
        cluster.call(tmp_path / 'one', partial(json.loads, '{'))
    with pytest.raises(
        InputError,
        match='^job 2 ended in the state FAILED and has no result.*2_0_log.err',
    ):
        cluster.call(tmp_path / 'one', partial(os._exit, 3))
    assert not (tmp_path / 'one').exists()


def test_a_killed_command_finds_its_jobs(slurm, tmp_path):
    record = tmp_path / 'one'
    on_slurm(tmp_path / 'jobs').start(record, partial(time.sleep, 600))
    again = on_slurm(tmp_path / 'jobs').start(record, None)
    assert record.read_text() == '1' and not again.has_ended()
    # After Ctrl-C, the next command submits another job.
    again.cancel()
    wait_for(again.has_ended)
    assert state(slurm / '1') == 'CANCELLED by 0'
    assert on_slurm(tmp_path / 'jobs').call(record, partial(operator.add, 1, 2)) == 3
    assert len(list(slurm.iterdir())) == 2


def test_a_preempted_job_that_is_canceled_is_submitted_again(
    slurm, tmp_path, monkeypatch
):
    monkeypatch.setattr('mmpsbn.cluster.REQUEUE_WAIT', 0)
    # It is interrupted once.
    code = (
        'import pathlib, time\n'
        'once = pathlib.Path("once")\n'
        'if not once.exists(): once.touch(); time.sleep(600)'
    )
    function = partial(
        subprocess.check_call, [sys.executable, '-c', code], cwd=tmp_path
    )
    record = tmp_path / 'one'
    job = on_slurm(tmp_path / 'jobs').start(record, function)
    wait_for((tmp_path / 'once').exists)
    (slurm / '1' / 'preempt').touch()
    wait_for(job.has_ended)
    assert record.read_text() == '2' and job.result() == 0
    assert state(slurm / '1') == 'PREEMPTED'
    wait_for(lambda: state(slurm / '2') == 'COMPLETED')


def test_jobs_end_with_the_first_failure(slurm, tmp_path):
    cluster = on_slurm(tmp_path / 'jobs')
    ended = run_jobs(
        cluster, time.sleep, [0, 600, -1], lambda seconds: tmp_path / f'{seconds}', 2
    )
    assert next(ended) == (0, None)
    assert not (slurm / '3').exists()
    with pytest.raises(InputError, match='job 3 failed: sleep length must be'):
        next(ended)
    wait_for(lambda: state(slurm / '2') == 'CANCELLED by 0')


def test_a_comparison_without_slurm_does_nothing(refused, digits, tmp_path):
    work_dir = tmp_path / 'work'
    options = '--cluster', 'slurm', '--work-dir', work_dir
    message = refused(*COMPARE, *options, data=digits)
    assert 'needs the command sbatch, which was not found' in message
    assert not work_dir.exists()


def test_a_cluster_that_cannot_be_used(slurm, tmp_path, monkeypatch):
    with pytest.raises(
        InputError, match='sbatch --test-only .*=debug.* invalid partition'
    ):
        cluster_of(tmp_path, '--cluster', 'slurm', '--partition', 'debug')
    monkeypatch.setattr('mmpsbn.cluster.PATIENCE', 0.5)
    (tmp_path / 'bin' / 'sacct').write_text('#!/bin/sh\nexec sleep 5\n')
    with pytest.raises(
        InputError, match=r'sacct --start.* \(no answer in 0.5 seconds\)'
    ):
        on_slurm(tmp_path)
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(InputError, match='needs the command sbatch, .* login node'):
        on_slurm(tmp_path)
    with pytest.raises(InputError, match='--partition gpu .* without --cluster slurm'):
        cluster_of(tmp_path, '--cluster', 'local', '--partition', 'gpu')
    for limit in ('1:30', '0', '1 h'):
        with pytest.raises(InputError, match=f'--time {limit} is not a time limit'):
            cluster_of(tmp_path, '--cluster', 'local', '--time', limit)


def test_local_jobs_of_a_background_command_end_with_it(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        cluster = cluster_of(tmp_path / 'jobs', '--cluster', 'local')
        job = cluster.start(tmp_path / 'one', partial(time.sleep, 600))
        # A signal while submitit starts the process would leave it behind.
        started = job._job.paths.stdout
        wait_for(lambda: started.exists() and 'Starting' in started.read_text())
        job.cancel()
        wait_for(lambda: not processes_of(tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_local_jobs_see_the_same_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3')
    cluster = cluster_of(tmp_path / 'jobs', '--cluster', 'local')
    seen = partial(os.getenv, 'CUDA_VISIBLE_DEVICES')
    assert cluster.call(tmp_path / 'one', seen) == '3'


@pytest.mark.slow
@pytest.mark.usefixtures('forked_runs')
def test_a_comparison_on_slurm_resumes_after_preemption(slurm, compare, tmp_path):
    work_dir = tmp_path / 'work'
    folder = work_dir / 'BN_lr0.04_seed0'

    def preempt():
        wait_for(lambda: list(folder.glob('epoch_1.pth')))
        # The training ends. Slurm may wait before the job is requeued.
        subprocess.check_call(['scancel', '2', '--signal', 'SIGTERM'])
        time.sleep(3)
        subprocess.check_call(['scancel', '2', '--signal', 'SIGUSR2'])

    threading.Thread(target=preempt, daemon=True).start()
    assert not compare(
        *('--cluster', 'slurm', '--partition', 'gpu', '--work-dir', str(work_dir)),
        *('--norms', 'BN', '--seeds', '1', '--rounds', '1', '--cfg-options', *SHORT),
        'train_cfg.max_epochs=3',
    )
    wait_for(lambda: [state(job) for job in slurm.iterdir()] == 2 * ['COMPLETED'])
    assert 'Requeued job 2' in (work_dir / 'jobs' / '2_0_log.out').read_text()
    # It has trained in two processes, and no epoch twice.
    logs = [file.read_text() for file in folder.glob('*/vis_data/scalars.json')]
    assert len(logs) == 2
    result = json.loads((folder / 'result.json').read_text())
    assert result['metrics']['step'] == 3 and result['device'] == 'CPU'
    assert 'resumed epoch: 1' in (folder / 'output.txt').read_text()
    assert (work_dir / 'report.md').exists()
