"""benchmarks/collapse: trained, resumed, and reported."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, make_rows, wait_for

from benchmarks.collapse import fits, report, training
from benchmarks.collapse.__main__ import main
from benchmarks.collapse.experiments import (
    EXPERIMENTS,
    STUDY,
    Result,
    Settings,
    start_of,
)
from benchmarks.shared import data
from benchmarks.shared.arguments import exit_with_message
from benchmarks.shared.pages import write_sections
from benchmarks.shared.pool import in_processes
from benchmarks.shared.rows import Numbers, write_rows
from benchmarks.shared.settings import Experiment
from benchmarks.shared.training import flipped_and_cropped
from mmpsbn.errors import InputError


def run(monkeypatch, folder, *arguments):
    arguments = ['collapse', *map(str, arguments), '--results', str(folder)]
    monkeypatch.setattr(sys, 'argv', arguments)
    main()


ONE = ('--experiments', 'alpha', '--seeds', 1, '--epochs', 1, '--processes', 1)


@pytest.mark.slow
def test_trained_resumed_and_reported(tmp_path, monkeypatch, capsys):
    jobs = EXPERIMENTS['alpha'].jobs(Settings, 1, epochs=1)
    mine = {job: [training.train(job, 'digits')] for job in jobs[:2]}
    # A row that is trained again would differ.
    mine[jobs[0]] = [mine[jobs[0]][0]._replace(accuracy=0.5)]
    file = tmp_path / 'digits.csv'
    write_rows(file, {jobs[0]: mine[jobs[0]]}, Settings, Result)
    run(monkeypatch, tmp_path, '--data', 'digits', *ONE)
    assert f'{len(jobs) - 1} trainings are missing' in capsys.readouterr().out
    found = STUDY.read(tmp_path)['digits']
    assert list(found) == sorted(jobs)
    assert found[jobs[0]] == mine[jobs[0]]
    # The same training has the same result.
    assert _untimed(found[jobs[1]]) == _untimed(mine[jobs[1]])

    written = (tmp_path / 'report.md').read_text()
    rows = make_rows(written)
    for row, job in zip(rows, [job for job in jobs if job.alpha], strict=True):
        assert row[:2] == [f'{job.lr:g}', f'{job.alpha:g}']
        own = [found[one][0] for one in (job._replace(alpha=0.0), job)]
        assert row[2:4] == [f'{100 * one.dead[-1] / 128:.1f}' for one in own]
        assert row[6:8] == [f'{100 * one.accuracy:.2f}' for one in own]
    # Other experiments have some of these trainings, and are not shown.
    assert '488 trainings are missing.' in written

    (tmp_path / 'alpha.png').unlink()
    before = file.read_bytes()
    run(monkeypatch, tmp_path, '--data', 'digits', *ONE)
    run(monkeypatch, tmp_path)
    assert file.read_bytes() == before
    assert (tmp_path / 'report.md').read_text() == written
    assert (tmp_path / 'alpha.png').stat().st_size > 10000


def _untimed(rows):
    return rows[0]._replace(seconds=0)


def test_trainings_of_another_length_are_not_mixed(tmp_path, monkeypatch, capsys):
    file = tmp_path / 'digits.csv'
    result = Result(0.5, 0, 4, Numbers((0, 1)), Numbers((0, 1)), 1.0)
    write_rows(file, {Settings(0): [result]}, Settings, Result)
    before = file.read_bytes()
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, tmp_path, '--data', 'digits', '--quick')
    assert 'has trainings of 30 epochs, and these would have 5' in str(end.value.code)
    assert file.read_bytes() == before


TRAINING_WITHOUT_END = """
import os
import time
from pathlib import Path

from benchmarks.shared.pool import in_processes

HERE = Path(__file__).parent


def train(job):
    (HERE / 'partial').write_text(str(os.getpid()))
    (HERE / 'partial').rename(HERE / 'worker')
    time.sleep(600)


if __name__ == '__main__':
    list(in_processes([(train, [0])], 1))
"""


@pytest.mark.slow
def test_a_killed_benchmark_leaves_no_process(tmp_path):
    (tmp_path / 'endless.py').write_text(TRAINING_WITHOUT_END)
    benchmark = subprocess.Popen(
        [sys.executable, str(tmp_path / 'endless.py')],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    try:
        wait_for(
            lambda: (tmp_path / 'worker').exists() and (tmp_path / 'worker').read_text()
        )
    finally:
        benchmark.kill()
        benchmark.wait()
    worker = int((tmp_path / 'worker').read_text())
    wait_for(lambda: has_ended(worker))


def has_ended(process):
    try:
        with open(f'/proc/{process}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] == 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_tables_have_means_intervals_and_differences():
    jobs = [
        Settings(seed, lr=lr, alpha=alpha)
        for seed in range(3)
        for lr in (0.1, 1.0)
        for alpha in (0.0, 0.1)
    ]

    def result(job):
        more = (job.seed + 1) * (job.alpha > 0) / 100
        return Result(
            0.5 + 0.1 * job.seed + more,
            int((job.seed, job.lr, job.alpha) == (2, 1.0, 0.0)),
            40,
            Numbers((0, 2 * job.seed)),
            Numbers((0, 6)),
            1.0,
        )

    experiment = Experiment('', [job._asdict() for job in jobs[:4]])
    for variant in experiment.variants:
        del variant['seed'], variant['epochs']
    results = {job: [result(job)] for job in jobs}
    rows = report.make_rows(experiment, results, report.Row)
    first, second = make_rows(report.table(report.compare(rows)))
    # Seeds 50, 60 and 70 %; psBN has 1, 2 and 3 more; 0, 2 and 4 of 40 dead.
    # Student's interval of 1, 2, 3 is 2 +- 4.303 / sqrt(3).
    assert first == [
        '0.1',
        *['5.0 ± 12.4'] * 2,
        *['15.0 ± 0.0'] * 2,
        '60.00 ± 24.84',
        '62.00 ± 27.33',
        '+2.00 (-0.48 to 4.48)',
        '0.148',
        '',
    ]
    # The accuracy of a diverged training counts, its channels do not.
    assert second[1] == '2.5 ± 31.8' and second[5] == '60.00 ± 24.84'
    assert second[-1] == '1 / 0'
    # Differences are those of the seeds that both have.
    del results[jobs[0]]
    rows = report.make_rows(experiment, results, report.Row)
    assert (
        make_rows(report.table(report.compare(rows)))[0][7] == '+2.50 (-3.85 to 8.85)'
    )


@pytest.mark.parametrize('start', ['first half', 'collapsed'])
def test_bn_goes_on_as_psbn_from_where_it_ended(start):
    own = Settings(0, epochs=1, start=start, alpha=0.1, lr=0.0)
    if start == 'first half':
        own = own._replace(classes='second')
    ended = training._start(start_of(own), 'digits', None, 'cpu')
    net, checks, *_ = training._fit(own, 'digits', None, 'cpu')
    found = net.state_dict()
    for key in found:
        if 'running' not in key and 'tracked' not in key:
            same = torch.allclose(found[key], ended[key])
            assert same == (start == 'collapsed' or not key.startswith('fc')), key
    assert len(checks.dead) == len(checks.died) == 1 + 1


def test_channels_are_judged_as_in_training():
    net = training.classifier(Settings(0), 1, 10)
    norms = [net.body[index].bn for index in (0, 2, 4, 6)]
    with torch.no_grad():
        # Far from every image: in evaluation nothing would be above 0.
        norms[0].running_mean.fill_(1e4)
        norms[1].bias[:3] = -1e4
    before = {name: value.clone() for name, value in net.state_dict().items()}
    checks = training.Checks(net, torch.rand(600, 1, 8, 8))
    checks.take()
    with torch.no_grad():
        norms[1].bias[0] = norms[2].bias[1] = 0
        norms[3].bias[31] = -1e4
    checks.take()
    assert (checks.dead, checks.died, checks.channels) == ([3, 3], [3, 4], 128)
    assert all(
        value.equal(before[name])
        for name, value in net.state_dict().items()
        if 'running' in name or 'tracked' in name
    )


def test_decay_of_norm_parameters_alone_is_changed():
    job = Settings(0, alpha=0.1, norm_decay=0.0)
    net = training.classifier(job, 1, 10)
    groups = training._optimizer(net, job).param_groups
    assert [group['weight_decay'] for group in groups] == [5e-4, 0]
    names = {id(p): name for name, p in net.named_parameters()}
    norms = {names[id(p)] for p in groups[1]['params']}
    assert norms == {name for name in names.values() if '.bn.' in name}
    assert len(groups[0]['params']) == len(names) - len(norms)


def test_the_law_of_dead_channels_is_found():
    channels = 10**6
    # 0.25 of x = 4 die, 1 of 10^6 at x = 0.01; below there is none.
    points = [
        (x, round(channels * -np.expm1(-0.018 * x**2)), channels)
        for x in (0.001, 0.01, 0.04, 0.1, 0.4, 1.6, 4, 20)
    ]
    assert points[0][1] == 0 and points[-1][1] > 0.99 * channels
    law = fits.fit_law(points)
    assert law.exponent == pytest.approx(2, abs=1e-3)
    assert law.factor == pytest.approx(0.018, rel=1e-3)
    assert fits.fit_law(points[:1]) is None
    # The mean law is the mean line of the logarithms.
    laws = [fits.Law(1.0, 0.1), fits.Law(3.0, 0.4)]
    assert fits.mean_law(laws) == pytest.approx((2, 0.2))


def test_cifar10_is_read_from_plain_bytes(tmp_path):
    rng, written = np.random.default_rng(0), []
    for name in (*(f'data_batch_{n}' for n in range(1, 6)), 'test_batch'):
        labels = np.arange(10, dtype=np.uint8)
        images = rng.integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
        np.concatenate([labels[:, None], images.reshape(10, -1)], 1).tofile(
            tmp_path / f'{name}.bin'
        )
        written.append(images)
    train, test = data.cifar10(str(tmp_path))
    assert train[1].tolist() == list(range(10)) * 5
    assert (train[0].numpy() * 255).round().astype(np.uint8).tolist() == np.concatenate(
        written[:5]
    ).tolist()
    assert test[0].shape == (10, 3, 32, 32)

    loaded = data.load('cifar10', str(tmp_path), 1)
    assert loaded.classes == 5
    assert loaded.test_labels.tolist() == list(range(5))
    assert loaded.train_images.mean((0, 2, 3)).abs().max() < 1e-5

    (tmp_path / 'test_batch.bin').write_bytes(b'\0' * 3000)
    with pytest.raises(InputError, match='not a whole file'):
        data.cifar10(str(tmp_path))
    (tmp_path / 'test_batch.bin').unlink()
    with pytest.raises(InputError, match='no test_batch.bin'):
        data.cifar10(str(tmp_path))


def test_augmented_images_are_shifted_and_flipped():
    torch.manual_seed(0)
    images = torch.randn(200, 3, 8, 8)
    found = flipped_and_cropped(images)
    assert found.shape == images.shape
    whole = torch.nn.functional.pad(images, [4] * 4)
    offsets, flips = set(), 0
    for image, own, flipped in zip(found, whole, whole.flip(3)):
        matches = [
            (flip, down, right)
            for flip, source in enumerate((own, flipped))
            for down in range(9)
            for right in range(9)
            if image.equal(source[:, down : down + 8, right : right + 8])
            and image.any()
        ]
        assert len(matches) == 1
        flips += matches[0][0]
        offsets.add(matches[0][1:])
    assert 70 < flips < 130 and len(offsets) > 60
    assert {down for down, _ in offsets} == set(range(9))


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_device_that_cannot_be_used(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, 'argv', ['collapse', '--data', 'digits', '--device', 'cuda']
    )
    with pytest.raises(SystemExit):
        main()
    assert '--device cuda cannot be used' in capsys.readouterr().err


def test_quick_keeps_what_is_given(tmp_path, monkeypatch, capsys):
    options = '--data', 'digits', '--quick', '--epochs', 0
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, *options)
    assert '--epochs is 0' in capsys.readouterr().err


def test_a_readme_without_marks_is_kept(tmp_path):
    (tmp_path / 'README.md').write_text('mine')
    assert write_sections(['a', 'b'], tmp_path).read_text() == 'a\nb'
    assert (tmp_path / 'README.md').read_text() == 'mine'


def test_an_experiment_that_a_data_set_does_not_have(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, 'argv', ['collapse', '--data', 'cifar10', '--experiments', 'gamma']
    )
    with pytest.raises(SystemExit):
        main()
    message = capsys.readouterr().err
    assert 'gamma: there is no such experiment on cifar10' in message


def test_a_killed_training_is_a_message():
    with pytest.raises(InputError, match='or the system has stopped one. Lower'):
        list(in_processes([(os._exit, [1])], 1))


@pytest.mark.parametrize(
    'code, words',
    [
        ('import no_such_package', 'no_such_package is needed and not installed'),
        ('raise ImportError("the stack")', 'error: the stack'),
        ('raise OSError(28, "No space left")', 'a file cannot be .*: No space left'),
        ('import torch\nraise torch.cuda.OutOfMemoryError', 'Lower --processes'),
    ],
)
def test_errors_that_the_user_can_correct_are_messages(code, words, tmp_path):
    with pytest.raises(SystemExit, match=words):
        with exit_with_message(tmp_path):
            exec(code)
