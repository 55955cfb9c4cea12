"""benchmarks/collapse: trained, resumed, and reported."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import ROOT, make_rows, untimed, wait_for

from benchmarks.collapse import fits, report, training
from benchmarks.collapse.__main__ import main
from benchmarks.collapse.experiments import EXPERIMENTS, Settings, settings
from benchmarks.shared import data
from benchmarks.shared.pool import read_results
from benchmarks.shared.settings import key_of, tree_of
from benchmarks.shared.training import flipped_and_cropped
from mmpsbn.errors import InputError


@pytest.mark.slow
def test_trained_gone_on_with_and_reported(tmp_path, monkeypatch, capsys):
    jobs = EXPERIMENTS['gamma'].jobs(settings, 1, epochs=1)
    before = [
        json.dumps(
            dict(
                settings=tree_of(job),
                result=training.train(job, None, tmp_path, keep=False),
            )
        )
        + '\n'
        for job in jobs[:2]
    ]
    # The second training was killed while its line was written.
    file = tmp_path / 'results.jsonl'
    file.write_text(before[0] + before[1][:-100])
    monkeypatch.setattr(
        sys,
        'argv',
        [
            'collapse',
            '--experiments',
            'gamma',
            '--seeds',
            '1',
            '--epochs',
            '1',
            '--processes',
            '1',
            '--out',
            str(tmp_path),
        ],
    )
    main()
    assert f'{len(jobs) - 1} trainings' in capsys.readouterr().out
    lines = file.read_text().splitlines(keepends=True)
    assert lines[0] == before[0]
    # The same training gives the same.
    found = [json.loads(line) for line in lines]
    assert untimed(found[1]) == untimed(json.loads(before[1]))

    written = (tmp_path / 'report.md').read_text()
    rows = make_rows(written)
    assert [row[0] for row in rows] == ['0.125', '0.25', '0.5', '1', '2']
    for row, line in zip(rows, found):
        result = line['result']
        assert row[1:6] == [
            'BN',
            f'{100 * result["accuracy"]:.2f}',
            '0.00',
            f'{100 * result["dead"][-1] / 128:.1f}',
            '0.0',
        ]

    figures = ('gamma.png', 'law.png')
    for name in figures:
        (tmp_path / name).unlink()
    main()
    assert 'Every training has its result.' in capsys.readouterr().out
    assert file.read_text() == ''.join(lines)
    assert (tmp_path / 'report.md').read_text() == written
    assert all((tmp_path / name).stat().st_size > 10000 for name in figures)


def test_earlier_results_are_found(tmp_path):
    """As the first version of this benchmark wrote them."""
    start = dict(
        data='digits',
        network='conv',
        epochs=30,
        optimizer='SGD',
        weight_decay=5e-4,
        slope=0.0,
        gamma=1.0,
        seed=3,
        half=0,
        start=None,
        lr=0.1,
        norm_decay=1.0,
        alpha=0.0,
        checks=10,
    )
    line = dict(start, half=1, start=start, lr=0.04, alpha=0.1)
    (tmp_path / 'results.jsonl').write_text(
        json.dumps(dict(settings=line, result=dict(accuracy=0.5))) + '\n'
    )
    jobs = EXPERIMENTS['finetune'].jobs(settings, 5, data='digits', epochs=30)
    assert [
        key_of(job)
        for job in jobs
        if key_of(job) in read_results(tmp_path / 'results.jsonl')
    ] == [json.dumps(line, sort_keys=True)]


TRAINING_WITHOUT_END = """
import os
import time
from pathlib import Path

from benchmarks.shared.pool import train_all

HERE = Path(__file__).parent


def train(job):
    (HERE / 'partial').write_text(str(os.getpid()))
    (HERE / 'partial').rename(HERE / 'worker')
    time.sleep(600)


if __name__ == '__main__':
    train_all([(train, [0])], {}, HERE / 'results.jsonl', 1, None)
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


def test_tables_have_means_spreads_and_differences():
    jobs = [
        Settings(seed, lr=lr, alpha=alpha)
        for seed in range(3)
        for lr in (0.1, 1.0)
        for alpha in (0.0, 0.1)
    ]

    def result(job):
        more = (job.seed + 1) * (job.alpha > 0) / 100
        accuracy = 0.5 + 0.1 * job.seed + more
        return dict(
            accuracy=accuracy,
            channels=40,
            sums=[0, 0],
            small_gamma=job.seed,
            dead=[0, 2 * job.seed],
            died=[0, 6],
            came_back=[0, 4],
            diverged=(job.seed, job.lr, job.alpha) == (2, 1.0, 0.0),
        )

    rows = report.make_rows(
        jobs, {key_of(job): result(job) for job in jobs}, report.Row
    )
    bn, psbn, diverged, _ = make_rows(report.table(rows, reference=0.0))
    # Seeds 50, 60 and 70 %; psBN has 1, 2 and 3 more; 0, 2 and 4 of 40 dead.
    assert bn == [
        '0.1',
        'BN',
        '60.00',
        '20.00',
        '',
        '5.0',
        '10.0',
        '15.0',
        '10.0',
        '1.0',
        '0',
    ]
    assert psbn[:5] == ['0.1', 'psBN', '62.00', '22.00', '+2.00 (-0.48 to 4.48)']
    # Its accuracy counts, its channels do not.
    assert diverged[2] == '60.00' and diverged[5:7] == ['2.5', '5.0']
    assert diverged[-1] == '1'


def test_bn_goes_on_as_psbn_from_where_it_ended(tmp_path):
    first = Settings(0, epochs=1, half=0)
    net = training.classifier(first, 1, 5)
    for p in net.parameters():
        torch.nn.init.uniform_(p, -1, 1)
    ended = net.state_dict()
    torch.save(ended, tmp_path / training.file_of(first))
    other = first._replace(half=1, alpha=0.1, start=first, lr=0.0, checks=5)
    result = training.train(other, None, tmp_path, keep=True)
    kept = torch.load(tmp_path / training.file_of(other))
    for index in (0, 2, 4, 6):
        for key in (f'body.{index}.bn.weight', f'body.{index}.bn.bias'):
            torch.testing.assert_close(kept[key], ended[key])
    assert len(result['steps']) == len(result['dead']) == 1 + 5


def test_channels_are_judged_as_in_training():
    net = training.classifier(Settings(0), 1, 10)
    norms = [net.body[index].bn for index in (0, 2, 4, 6)]
    with torch.no_grad():
        # Far from every image: in evaluation nothing would be above 0.
        norms[0].running_mean.fill_(1e4)
        norms[1].bias[:3] = -1e4
    before = {name: value.clone() for name, value in net.state_dict().items()}
    checks = training.Checks(net, torch.rand(600, 1, 8, 8))
    checks.take(0)
    with torch.no_grad():
        norms[1].bias[0] = norms[2].bias[1] = 0
        norms[3].bias[31] = -1e4
    checks.take(1)
    found = {name: checks.found[name] for name in ('dead', 'died', 'came_back')}
    assert found == dict(dead=[3, 3], died=[3, 4], came_back=[0, 1])
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
    # Student's interval of 1, 2, 3: 2 +- 4.303 / sqrt(3).
    assert fits.estimate([1, 2, 3]) == pytest.approx(
        (2, 2 - 2.4841, 2 + 2.4841), abs=1e-4
    )


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


def test_an_experiment_that_a_data_set_does_not_have(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, 'argv', ['collapse', '--data', 'cifar10', '--experiments', 'gamma']
    )
    with pytest.raises(SystemExit):
        main()
    message = capsys.readouterr().err
    assert 'gamma: there is no such experiment on cifar10' in message
