"""A run resumes, wherever it was interrupted."""

import os
import random
import resource
import signal
import time

import pytest
import torch
from helpers import Toy, toy_runner
from mmengine.config import Config
from mmengine.hooks import Hook

from mmpsbn.checkpoints.backend import use_atomic_checkpoints
from mmpsbn.checkpoints.reading import find_latest
from mmpsbn.config.start import check_start, set_resume
from mmpsbn.errors import InputError

KILLS = 30


@pytest.fixture
def two_epochs(tmp_path):
    toy_runner(tmp_path, Toy(), epochs=2).train()
    os.utime(tmp_path / 'epoch_1.pth', (1, 1))
    return tmp_path


def test_resume_takes_the_newest_whole_checkpoint(two_epochs):
    first, second = (two_epochs / f'epoch_{n}.pth' for n in (1, 2))
    (two_epochs / 'best_mAP_epoch_9.pth').write_bytes(second.read_bytes())
    last = two_epochs / 'last_checkpoint'
    assert find_latest(str(two_epochs)).path == str(second)
    # The run ended before, or while, this was written.
    for text in (str(first), '', None):
        last.write_text(text) if text is not None else last.unlink()
        assert find_latest(str(two_epochs)).path == str(second)
    second.write_bytes(second.read_bytes()[:-100])
    assert find_latest(str(two_epochs)).path == str(first)
    first.write_bytes(b'')
    with pytest.raises(InputError, match='cannot be read: it is truncated'):
        find_latest(str(two_epochs))


def test_the_newest_checkpoint_of_a_copied_work_dir(tmp_path):
    numbers = (9, 12, 10, 11)  # The order in which they were copied.
    for seconds, number in enumerate(numbers, 1):
        file = tmp_path / f'epoch_{number}.pth'
        torch.save(dict(state_dict={}), file)
        os.utime(file, (seconds, seconds))
    (tmp_path / 'last_checkpoint').write_text('elsewhere/epoch_12.pth')
    assert find_latest(str(tmp_path)).path == str(tmp_path / 'epoch_12.pth')
    # A second, shorter training in the same work dir.
    os.utime(tmp_path / 'epoch_9.pth', (9, 9))
    (tmp_path / 'last_checkpoint').write_text('elsewhere/epoch_9.pth')
    assert find_latest(str(tmp_path)).path == str(tmp_path / 'epoch_9.pth')


def test_resume_without_a_checkpoint_starts_as_the_config_says(two_epochs):
    cfg = Config(dict(work_dir=str(two_epochs / 'new'), load_from='bn.pth'))
    set_resume(cfg, None)
    assert (cfg.resume, cfg.load_from) == (False, 'bn.pth')
    cfg.work_dir = str(two_epochs)
    set_resume(cfg, None)
    assert (cfg.resume, cfg.load_from) == (True, str(two_epochs / 'epoch_2.pth'))
    set_resume(cfg, str(two_epochs / 'epoch_1.pth'))
    assert (cfg.resume, cfg.load_from) == (True, str(two_epochs / 'epoch_1.pth'))


def test_a_checkpoint_is_read_once_before_a_run_resumes(two_epochs, monkeypatch):
    """MMEngine then reads it a second time, to load it."""
    reads, load = [], torch.load

    def count(file, *args, **kwargs):
        reads.append(file)
        return load(file, *args, **kwargs)

    monkeypatch.setattr(torch, 'load', count)
    cfg = Config(dict(work_dir=str(two_epochs), model=dict()))
    checkpoint = set_resume(cfg, None)
    check_start(cfg)
    assert reads == [checkpoint.path]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    runner = toy_runner(tmp_path, Toy(), epochs=3, keep=1)
    use_atomic_checkpoints(runner)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fill(Hook):
        def after_train_epoch(self, runner):
            if runner.epoch == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

    runner.register_hook(Fill(), 'VERY_HIGH')
    try:
        with pytest.raises(InputError, match='epoch_2.pth cannot be written'):
            runner.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.glob('*.pth*')] == ['epoch_1.pth']
    assert find_latest(str(tmp_path)).path == str(tmp_path / 'epoch_1.pth')

    again = toy_runner(tmp_path, Toy(), epochs=3, keep=1, resume=True)
    use_atomic_checkpoints(again)
    again.train()
    assert [path.name for path in tmp_path.glob('*.pth*')] == ['epoch_3.pth']


class Heavy(Toy):
    """Its checkpoints take a while to be written."""

    def __init__(self):
        super().__init__()
        self.register_buffer('ballast', torch.zeros(2_000_000))


def train(work_dir, epochs):
    """As tools/train.py --resume does it."""
    torch.set_num_threads(1)  # Another number rounds otherwise.
    torch.manual_seed(0)
    cfg = Config(dict(work_dir=str(work_dir)))
    set_resume(cfg, None)
    runner = toy_runner(
        work_dir, Heavy(), epochs, keep=1, resume=cfg.resume, load_from=cfg.load_from
    )
    use_atomic_checkpoints(runner)
    runner.train()
    return runner.model.state_dict()


def child_that_trains(work_dir):
    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            # CUDA does not survive a fork.
            torch.cuda.is_available = lambda: False
            train(work_dir, epochs=100_000)
        finally:
            os._exit(1)
    return child


def train_and_kill(work_dir, seconds, patient):
    """Kill it some time after its start, or after its first checkpoint."""
    # Not find_latest: the child removes what that is about to read.
    before = set(work_dir.glob('*.pth'))
    child = child_that_trains(work_dir)
    end = time.monotonic() + 30 * patient
    while time.monotonic() < end and before == set(work_dir.glob('*.pth')):
        time.sleep(0.01)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, 'the run did not resume'


@pytest.fixture
def threads():
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def cut(descriptor):
    """Of the file, what a machine without power may keep."""
    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    'moment, kill',
    [
        ('fsync', cut),
        ('replace', lambda *paths: os.kill(os.getpid(), signal.SIGKILL)),
        ('remove', lambda *paths: os.kill(os.getpid(), signal.SIGKILL)),
    ],
)
def test_a_kill_in_the_middle_of_a_checkpoint(
    moment, kill, threads, tmp_path, monkeypatch
):
    folder = tmp_path / 'killed'
    train(folder, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, moment, kill)
        child = child_that_trains(folder)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    names = {path.name for path in folder.glob('*.pth*')}
    assert names == {
        'epoch_1.pth',
        'epoch_2.pth' if moment == 'remove' else 'epoch_2.pth.partial',
    }
    one, other = train(folder, 3), train(tmp_path / 'whole', 3)
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_kills_lose_an_epoch_at_most(threads, count, tmp_path):
    folder, moments, epoch = tmp_path / 'killed', random.Random(0), 0
    partial = set()
    for number in range(KILLS):
        train_and_kill(folder, moments.uniform(0.02, 0.25), number % 2)
        count('kills')
        now = {path.stat().st_mtime_ns for path in folder.glob('*.partial')}
        if now - partial:
            count('in the middle of a checkpoint')
        partial |= now
        latest = find_latest(str(folder))
        found = latest.meta['epoch'] if latest else 0
        assert found >= epoch
        epoch = found
    assert epoch >= KILLS // 2
    one = train(folder, epoch + 1)
    other = train(tmp_path / 'whole', epoch + 1)
    assert all(torch.equal(one[key], other[key]) for key in one)
