"""The processes of a comparison: locks, signals, kills and resumed runs."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import (
    COMPARE,
    PATIENCE,
    ROOT,
    SHORT,
    comparison,
    demo_config,
    of_digits,
    run,
    wait_for,
)

from mmpsbn.compare import Comparison, replace_norm
from mmpsbn.compare.processes import explain_exit, lock_folder
from mmpsbn.errors import InputError
from mmpsbn.hooks.non_finite_hook import DIVERGED

KILLED = r'killed by signal 9 \(SIGKILL\)\. .* out of memory; lower the batch size, .*'


def processes_of(folder):
    """Process ids whose command line names a folder, without this one."""
    found = []
    for entry in Path('/proc').iterdir():
        try:
            command = (entry / 'cmdline').read_bytes()
        except OSError:
            continue
        # A process that has ended but was not waited for has no command line.
        if entry.name.isdigit() and str(folder).encode() in command:
            found.append(int(entry.name))
    return [number for number in found if number != os.getpid()]


def short_plan(digits, work_dir, lrs=(), processes=1, epochs=1, loop=None, **changes):
    """A plan of one run with BN that takes a few seconds."""
    cfg = of_digits(demo_config('faster-rcnn', 'psbn'), digits)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_cfg = loop or dict(
        type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=1
    )
    cfg.default_hooks.logger.interval = 1
    cfg.model.test_cfg.rcnn.score_thr = 0  # It is confident of nothing yet.
    cfg.merge_from_dict(changes)
    plan = Comparison(
        cfg,
        {'BN': replace_norm(cfg, 'BN')},
        lrs,
        (0,),
        str(work_dir),
        processes=processes,
    )
    plan.write()
    return plan


@pytest.mark.slow
@pytest.mark.parametrize('name, processes', [('SIGHUP', 1), ('SIGKILL', 2)])
def test_runs_end_with_a_comparison_in_the_background(
    name, processes, digits, tmp_path
):
    work_dir = tmp_path / 'work'
    arguments = [
        '--work-dir',
        str(work_dir),
        '--norms',
        'BN',
        '--seeds',
        '1',
        '--rounds',
        '1',
        '--processes',
        str(processes),
    ]
    options = ['train_cfg.max_epochs=1000']

    def as_background_job():
        # A script starts it with Ctrl-C ignored, and nohup may run the tests.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    parent = subprocess.Popen(
        [sys.executable, *COMPARE, *arguments, '--cfg-options', *SHORT, *options],
        cwd=ROOT,
        env=dict(os.environ, MMDET_DATASETS=str(digits), OMP_NUM_THREADS='1'),
        preexec_fn=as_background_job,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output = work_dir / 'BN_lr0.04_seed0' / 'output.txt'
        # Every process has trained a step.
        wait_for(
            lambda: (
                output.exists()
                and 'Epoch(train)' in output.read_text()
                or parent.poll() is not None
            )
        )
        assert parent.poll() is None, parent.stdout.read()
        assert len(processes_of(work_dir)) > processes
        if name == 'SIGKILL':
            status, text = run(
                *COMPARE, *arguments, data=digits, options=options, fresh=True
            )
            assert status == 1
            assert f'is in use by process {parent.pid} on' in text
        parent.send_signal(getattr(signal, name))
        assert parent.wait(PATIENCE) == (-9 if name == 'SIGKILL' else 130)
    finally:
        parent.kill()
    wait_for(lambda: not processes_of(work_dir))
    # Linux removes the command of a process before it closes its files.
    wait_for(lambda: is_free(work_dir))


def is_free(work_dir):
    try:
        lock_folder(work_dir).close()
    except InputError:
        return False
    return True


@contextmanager
def another_process(work_dir):
    """Hold a folder in a process that then waits."""
    code = (
        'import sys, pathlib, mmpsbn.compare.processes as p; '
        'lock = p.lock_folder(pathlib.Path(sys.argv[1])); '
        'print(flush=True); sys.stdin.read()'
    )
    other = subprocess.Popen(
        [sys.executable, '-c', code, str(work_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    other.stdout.readline()
    yield other
    other.kill()
    other.communicate()


@pytest.mark.slow
def test_one_comparison_holds_a_folder(digits, tmp_path):
    plan = comparison(digits, tmp_path / 'new')
    (tmp_path / 'new').mkdir()
    with another_process(tmp_path / 'new') as other:
        with pytest.raises(
            InputError,
            match=rf'process {other.pid} on .* '
            'choose another folder with --work-dir',
        ):
            plan.write()
    plan.write()


def test_a_folder_that_cannot_be_read_or_written(digits, tmp_path):
    folder = tmp_path / 'closed'
    folder.mkdir()
    plan = comparison(digits, folder)
    folder.chmod(0)
    user = os.geteuid()
    os.seteuid(user or 65534)  # Root may read and write everything.
    try:
        with pytest.raises(InputError, match='closed cannot be read: Perm'):
            Comparison(plan.cfg, plan.cfgs, [], [0], str(folder))
        with pytest.raises(InputError, match='closed cannot be written: Perm'):
            plan.write()
    finally:
        os.seteuid(user)


@pytest.mark.slow
def test_two_comparisons_that_make_a_folder_at_the_same_time(digits, tmp_path):
    one = comparison(digits, tmp_path / 'new')
    two = comparison(digits, tmp_path / 'new', **{'train_cfg.max_epochs': 3})
    one.write()
    del one
    with pytest.raises(InputError, match='belongs to another comparison'):
        two.write()


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_a_run_killed_by_a_signal_is_reported_as_such(processes, digits, tmp_path):
    plan = short_plan(digits, tmp_path / 'work', processes=processes, epochs=1000)
    (run,) = plan.runs

    def kill():
        wait_for(lambda: plan.progress(run) > 0)
        # The last to start is a worker of the launcher, if there is one.
        os.kill(max(processes_of(tmp_path / 'work')), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    assert not plan.run(run, lambda share: None)
    assert re.fullmatch(KILLED, plan.failures[run])


def test_a_killed_process_explains_why_the_other_one_failed():
    output = """
RuntimeError: Read error [127.0.0.1]:15262: Connection reset by peer
torch.distributed.elastic.multiprocessing.api: [E] failed (exitcode: 1) local_rank: 0
Failures:
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 24075)
Root Cause (first observed failure):
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 24074)
"""
    assert re.fullmatch(KILLED, explain_exit(1, output))
    alone = output.replace('exitcode  : -9', 'exitcode  : -15')
    assert explain_exit(1, alone).startswith('RuntimeError: Read error')


@pytest.mark.slow
def test_a_run_of_two_processes_that_diverges_has_ended(digits, tmp_path):
    plan = short_plan(
        digits,
        tmp_path / 'work',
        lrs=[1e30],
        processes=2,
        epochs=8,
        **{'optim_wrapper.clip_grad': None},
    )
    (run,) = plan.runs
    assert plan.run(run, lambda share: None), plan.failures
    assert plan.result(run)['diverged']
    assert json.loads((plan.folder(run) / DIVERGED).read_text())['iteration'] == 2


@pytest.mark.slow
def test_a_failure_of_two_processes_is_reported_without_the_launcher(digits, tmp_path):
    plan = short_plan(digits, tmp_path / 'work', processes=2)
    plan.cfgs['BN'].custom_hooks = [dict(type='NoSuchHook')]
    (run,) = plan.runs
    assert not plan.run(run, lambda share: None)
    assert plan.failures[run].startswith('error: ')
    assert 'NoSuchHook' in plan.failures[run]


@pytest.mark.slow
def test_a_run_without_an_evaluation_has_no_result(digits, tmp_path):
    plan = short_plan(digits, tmp_path / 'work')
    plan.cfgs['BN'].default_hooks.logger = None
    (run,) = plan.runs
    assert not plan.run(run, lambda share: None)
    assert 'no evaluation was logged' in plan.failures[run]


@pytest.mark.slow
def test_a_kill_during_the_last_evaluation(digits, tmp_path):
    plan = short_plan(
        digits, tmp_path / 'work', epochs=2, **{'val_evaluator.prefix': 'val'}
    )
    (run,) = plan.runs
    assert plan.run(run, lambda share: None), plan.failures
    expected = plan.result(run)['metrics']
    assert (expected['step'], plan.score_names[0] in expected) == (2, True)
    # What is there if it is killed after the last checkpoint.
    (plan.folder(run) / 'result.json').unlink()
    (log,) = plan.folder(run).glob('*/vis_data/scalars.json')
    lines = log.read_text().splitlines()
    assert 'iter' not in json.loads(lines[-1])
    log.write_text('\n'.join(lines[:-1]) + '\n')
    assert plan.run(run, lambda share: None), plan.failures
    found = plan.result(run)['metrics']
    assert found['step'] == 2
    assert found[plan.score_names[0]] == pytest.approx(expected[plan.score_names[0]])


@pytest.mark.slow
def test_a_config_that_counts_iterations(digits, tmp_path):
    plan = short_plan(
        digits,
        tmp_path / 'work',
        loop=dict(type='IterBasedTrainLoop', max_iters=4, val_interval=2),
        # Results are read from the files of LocalVisBackend.
        visualizer=dict(vis_backends=[]),
    )
    (run,) = plan.runs
    assert plan.run(run, lambda share: None), plan.failures
    assert list(plan.curve(run, plan.score_names[0])) == [2, 4]
    assert [path.name for path in plan.folder(run).glob('*.pth')] == ['iter_4.pth']
