"""benchmarks.rounds: tasks, methods, resuming, results and the report."""

import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import PATIENCE, ROOT
from torch.nn import functional as F

from benchmarks.rounds import __main__ as command
from benchmarks.rounds import figures, pruning, report, tasks, training
from benchmarks.rounds.measures import effective_rank, look
from benchmarks.rounds.networks import new_network
from benchmarks.rounds.recovery import Death, follow, predicted_rounds
from benchmarks.rounds.remedies import SHRINK, reset_dead_units, shrink_and_perturb
from benchmarks.rounds.results import Results
from benchmarks.rounds.studies import METHODS, SCRATCH, Run, Setting, Study
from benchmarks.rounds.training import (
    Round,
    checkpoint_of,
    decay_of,
    learning_rates,
    simulated_decay_of,
    train,
)
from benchmarks.shared.series import Series
from mmpsbn.errors import InputError

HIGH = Setting(0.8, 5e-4)
STUDY = Study('digits', 'plain', {HIGH: METHODS})


@pytest.fixture
def short(monkeypatch):
    """Rounds of a few steps, and checkpoints after every second one."""
    monkeypatch.setitem(tasks.EPOCHS, 'digits', 2)
    monkeypatch.setattr(training, 'CHECKPOINT_EVERY', 2)


def main(monkeypatch, folder, *args):
    monkeypatch.setattr(
        sys,
        'argv',
        ['rounds', '--results', str(folder), '--work-dir', str(folder / 'work'), *args],
    )
    command.main()


def same(one, other):
    """Whether rows are the same, where NaN is equal to NaN."""
    return [list(map(repr, row)) for row in one] == [
        list(map(repr, row)) for row in other
    ]


def test_all_methods_see_the_same_tasks(short, monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(
        training,
        'fit',
        lambda net, task, run: seen.setdefault(run.method, []).append(task) or True,
    )
    for method in (SCRATCH, *METHODS):
        train((STUDY, Run(method, *HIGH, 3)), 2, tmp_path)
    assert {len(own) for own in seen.values()} == {2}
    first, second = seen['BN']
    assert not torch.equal(first.train_images[:50], second.train_images[:50])
    assert set(first.train_labels.tolist()) == {0, 1}
    for method in (SCRATCH, *METHODS):
        for one, other in zip(seen[method], (first, second)):
            assert all(map(torch.equal, one, other))
    data = tasks.images('digits', None, 'cpu')
    other = tasks.task_of('digits', data, 4, 1)
    assert not torch.equal(first.train_images[:50], other.train_images[:50])
    # Each epoch has each image at most once.
    half = len(first.batches) // 2
    for epoch in first.batches.split(half):
        assert len(epoch.unique()) == epoch.numel()


def test_norms_start_from_the_same_convolutions():
    nets = [new_network('residual', norm, 3, 0, 1) for norm in ('BN', 'psBN', 'GN')]
    for net in nets[1:]:
        for one, other in zip(nets[0].modules(), net.modules()):
            if isinstance(one, torch.nn.Conv2d):
                assert torch.equal(one.weight, other.weight)
    again = new_network('residual', 'BN', 3, 0, 2)
    assert not torch.equal(again.body[0].conv.weight, nets[0].body[0].conv.weight)


def test_mimicnorm_has_its_scalars_and_a_random_last_bn():
    net = new_network('residual', 'MimicNorm', 3, 0, 1)
    scales = {
        name: value.item()
        for name, value in net.named_parameters()
        if name.endswith('.scale')
    }
    assert scales == pytest.approx(
        {
            'body.1.second.conv.scale': 1.44,
            'body.2.second.conv.scale': 0.72,
            'body.3.second.conv.scale': 0.48,
            'body.2.shortcut.conv.scale': 1.2,
            'body.3.shortcut.conv.scale': 1.2,
        }
    )
    net.fc.running_var.fill_(9)
    net.fc.gain.data.fill_(2)
    net.reset_classifier()
    assert (net.fc.running_var == 1).all() and (net.fc.gain == 1).all()
    assert 0.1 < net.fc.weight.std() < 0.25
    bn = new_network('residual', 'BN', 3, 0, 1)
    bn.reset_classifier()
    assert not bn.fc.weight.any() and not bn.fc.bias.any()


@pytest.mark.parametrize(
    'network, names',
    [
        ('plain', ['body.0.relu', 'body.3.relu']),
        ('residual', ['body.1.first.relu', 'body.3.first.relu']),
    ],
)
def test_dead_units_are_reset_without_a_change(network, names):
    net = new_network(network, 'BN+ReDo', 3, 0, 1)
    net.fc.weight.data.normal_()
    images = torch.randn(32, 3, 8, 8)
    for name in names:
        norm = net.get_submodule(name.replace('relu', 'norm'))
        norm.weight.data[[1, 5]] = 0.01
        norm.bias.data[[1, 5]] = -1
    net.train()
    before = net(images)
    seen = look(net, images)
    assert {
        name: mask.nonzero().flatten().tolist()
        for name, mask in seen.dead.items()
        if mask.any()
    } == {name: [1, 5] for name in names}
    old = {name: value.clone() for name, value in net.state_dict().items()}
    reset_dead_units(net, seen.dead)
    torch.testing.assert_close(net(images), before)
    for unit, reader in net.read_once:
        name = next(name for name, module in net.named_modules() if module is unit)
        dead = seen.dead[f'{name}.relu']
        assert not reader.weight[:, dead].any()
        assert reader.weight[:, ~dead].any()
        changed = (unit.conv.weight != old[f'{name}.conv.weight']).flatten(1).any(1)
        if dead.any():
            assert (changed >= dead).all()
            assert (unit.norm.weight[dead] == 1).all()
            assert not unit.norm.bias[dead].any()
    assert not look(net, images).dead[names[0]].any()


def test_shrink_and_perturb():
    net, fresh = (new_network('plain', 'BN+S&P', 3, 0, number) for number in (1, 2))
    for value in net.parameters():
        value.data.add_(1)
    old = [value.clone() for value in net.parameters()]
    shrink_and_perturb(net, fresh)
    for value, before, new in zip(net.parameters(), old, fresh.parameters()):
        torch.testing.assert_close(value, SHRINK * before + 0.4 * new)


def test_effective_rank():
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 6)) * [9, 5, 2, 1, 0, 0]
    values = np.linalg.svd(features, compute_uv=False)
    shares = values[values > 1e-9] / values.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert effective_rank(torch.tensor(features)) == pytest.approx(expected)
    assert effective_rank(torch.eye(6)) == pytest.approx(6)
    assert effective_rank(torch.ones(9, 6)) == pytest.approx(1)
    assert effective_rank(torch.zeros(9, 6)) == 0


def test_predicted_recovery_is_that_of_the_optimizer():
    """A dead channel, followed through rounds of SGD without gradient."""
    run, steps = Run('psBN', 0.8, 5e-4, 0), 108
    net = new_network('plain', 'psBN', 1, 0, 1)
    norm, deaths = net.body[0].norm, []
    schedule = run.lr, run.weight_decay, steps
    decay, simulated = decay_of(*schedule), simulated_decay_of(*schedule)
    betas = [-0.13, -0.3, -1.0]
    norm.weight.data[:3] = 0
    norm.bias.data[:3] = torch.tensor(betas) + norm.alpha
    images = torch.randn(16, 1, 8, 8)
    for number in range(1, 15):
        if number > 1:
            optimizer = torch.optim.SGD(
                norm.parameters(), run.lr, 0.9, weight_decay=run.weight_decay
            )
            for lr in learning_rates(run.lr, steps):
                optimizer.param_groups[0]['lr'] = lr
                for value in norm.parameters():
                    value.grad = torch.zeros_like(value)
                optimizer.step()
            norm.weight.data[3:] = 1
            norm.bias.data[3:] = 0
        follow(net, look(net, images).dead, number, decay, simulated, deaths)
    assert [death.channel for death in deaths] == [0, 1, 2]
    assert [death.beta for death in deaths] == pytest.approx(betas)
    assert (
        [death.recovered for death in deaths]
        == [death.simulated for death in deaths]
        == [3, 8, 14]
    )
    # The formula leaves out the start of the momentum.
    assert (
        [death.predicted for death in deaths]
        == [1 + predicted_rounds(beta, decay) for beta in betas]
        == [3, 7, 13]
    )
    assert decay == pytest.approx(0.2, rel=1e-3)
    assert 0.9 < simulated / decay < 0.91


@pytest.mark.parametrize('method', [SCRATCH, *METHODS])
def test_a_killed_run_resumes(short, monkeypatch, tmp_path, method):
    job = STUDY, Run(method, *HIGH, 0)
    whole = train(job, 8, tmp_path / 'whole')
    assert [row.round for row in whole[0]] == [*range(1, 9)]
    fit = training.fit

    def killed(*args):
        killed.rounds += 1
        if killed.rounds == 4:
            raise KeyboardInterrupt
        return fit(*args)

    killed.rounds = 0
    monkeypatch.setattr(training, 'fit', killed)
    with pytest.raises(KeyboardInterrupt):
        train(job, 8, tmp_path)
    assert checkpoint_of(job, tmp_path).exists()
    resumed = train(job, 8, tmp_path)
    # Two rounds come from the checkpoint.
    assert killed.rounds == 4 + len(whole[0]) - 2
    assert same(resumed[0], whole[0]) and same(resumed[1], whole[1])


def test_methods_differ(short, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        training, 'reset_dead_units', lambda net, dead: calls.append((net, dead))
    )
    rows = {
        method: train((STUDY, Run(method, *HIGH, 0)), 2, tmp_path)[0]
        for method in METHODS
    }
    # Remedies act after a round, and only those of their method.
    assert rows['BN'][0] == rows['BN+ReDo'][0] == rows['BN+S&P'][0]
    assert len({rows[method][0].rank for method in METHODS[:4]}) == 4
    assert rows['BN+S&P'][1].norm < rows['BN'][1].norm
    assert [set(dead) for _, dead in calls] == 2 * [
        {f'body.{unit}.relu' for unit in range(4)}
    ]


def test_scratch_is_a_run_in_its_first_round(short, tmp_path):
    rows = {
        method: train((STUDY, Run(method, *HIGH, 0)), 2, tmp_path)[0]
        for method in (SCRATCH, 'BN')
    }
    assert rows[SCRATCH][0] == rows['BN'][0]
    assert rows[SCRATCH][1] != rows['BN'][1]


def test_a_lost_network_stays_at_chance(short, tmp_path):
    run = Run('BN', 1e30, 5e-4, 0)
    rows, _ = train((STUDY, run), 3, tmp_path)
    assert [(row.round, row.accuracy) for row in rows] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert all(math.isnan(row.dead) for row in rows)


def test_finished_runs_are_not_repeated(
    short, monkeypatch, tmp_path, in_this_process, capsys
):
    study = Study('digits', 'plain', {HIGH: ('BN', 'psBN')})
    monkeypatch.setattr(command, 'STUDIES', [study])
    options = '--data', 'digits', '--rounds', '4'
    main(monkeypatch, tmp_path, *options, '--seeds', '1')
    assert [run for _, run in in_this_process] == study.runs(1)
    file = tmp_path / 'digits-plain.csv'
    before = file.read_text()
    assert len(before.splitlines()) == 1 + 4 + 4 + 4
    assert not [*(tmp_path / 'work').rglob('*.pth')]
    # On another machine: without the work dir.
    in_this_process.clear()
    main(monkeypatch, tmp_path, *options, '--seeds', '2')
    assert [run for _, run in in_this_process] == study.runs(2)[3:]
    assert before.splitlines()[1:] == [
        line for line in file.read_text().splitlines() if ',0.0005,0,' in line
    ]
    in_this_process.clear()
    main(monkeypatch, tmp_path, '--data', 'digits', '--rounds', '2')
    assert {run.seed for _, run in in_this_process} == {2, 3, 4}
    in_this_process.clear()
    # A run that has lost a row is repeated.
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(''.join(lines[:2] + lines[3:]))
    main(monkeypatch, tmp_path, *options, '--seeds', '2')
    assert [run for _, run in in_this_process] == [Run('BN', *HIGH, 0)]
    assert file.read_text() == ''.join(lines)
    assert '1 runs are missing' in capsys.readouterr().out


@pytest.mark.slow
def test_jobs_of_a_cluster_give_the_same_rows(monkeypatch, tmp_path):
    study = Study('digits', 'plain', {HIGH: ('BN',)})
    monkeypatch.setattr(command, 'STUDIES', [study])
    options = '--data', 'digits', '--rounds', '1', '--seeds', '1'
    main(monkeypatch, tmp_path, *options, '--cluster', 'local')
    runs = study.runs(1)
    for run in runs:
        rows, _ = train((study, run), 1, tmp_path)
        assert same(Results(tmp_path, study).rounds[run], rows)
    assert len(list((tmp_path / 'work' / 'jobs').glob('*_result.pkl'))) == len(runs)
    assert not list((tmp_path / 'work').rglob('*.job'))


@pytest.mark.parametrize('method', ['BN', 'psBN'])
def test_a_network_without_its_dead_channels_computes_the_same(method):
    net, seen = new_network('plain', method, 1, 0, 1), torch.rand(64, 1, 8, 8)
    dead = (31, 30, 50, 60)
    with torch.no_grad():
        net.fc.weight.normal_()
        for unit, count in zip(net.body, dead):
            unit.norm.bias[:count] = -99
        net(seen)  # Running statistics.
    size = pruning.pruned_size(net, seen.double(), torch.rand(8, 1, 8, 8).double())
    assert (size.channels, size.removed) == (192, sum(dead))
    alive = [1, *(w - count for w, count in zip((32, 32, 64, 64), dead))]
    convs = sum((9 * one + 1) * other for one, other in zip(alive, alive[1:]))
    assert size.remaining == convs + 2 * alive[-1] + 2 < size.parameters
    assert size.difference < 1e-12 and not size.changed


def test_pruning_resumes(short, in_this_process, monkeypatch, tmp_path):
    monkeypatch.setattr(pruning, 'ROUNDS', 2)
    options = '--results', str(tmp_path), '--work-dir', str(tmp_path / 'work')
    for seeds in (1, 2):
        monkeypatch.setattr(sys, 'argv', ['pruning', *options, '--seeds', str(seeds)])
        in_this_process.clear()
        pruning.main()
        assert in_this_process == [Run(own, *HIGH, seeds - 1) for own in ('BN', 'psBN')]
        assert not [*(tmp_path / 'work').rglob('*.pth')]
    assert len((tmp_path / pruning.FILE).read_text().splitlines()) == 5
    # A checkpoint of fewer rounds than it should have.
    run = Run('BN', *HIGH, 2)
    train((pruning.STUDY, run), 4, tmp_path / 'work')
    with pytest.raises(InputError, match='of round 4, but the model of round 2'):
        pruning.measure(run, tmp_path / 'work')


def made_up(folder, study=STUDY, seeds=3):
    """Write results whose means are known."""
    results, random = Results(folder, study), np.random.default_rng(0)
    for run in study.runs(seeds):
        base = 0.8 + 0.01 * run.seed
        rows = []
        for number in range(1, 61):
            noise = 0.001 * random.uniform(-1, 1)
            lower = run.method == 'BN' and number > 10
            worse = 0.02 * (run.method == 'psBN' and number <= 10)
            rows.append(
                Round(
                    number,
                    base - 0.1 * lower - worse + noise,
                    0.25 if lower else 0.0,
                    12.5,
                    20.0,
                    1,
                    0,
                )
            )
        deaths = [
            Death(0, 5, 0.001, -0.2, 9, 11, 11),
            Death(1, 5, 0.0, -0.5, 13, 14),
            Death(2, 6, 0.1, -0.5, 13, 14, 8),
            Death(3, 59, 0.0, -2.0, 75, 77),
        ]
        results.add(run, (rows, deaths if run.method == 'psBN' else []))


def test_report_from_csv_alone(monkeypatch, tmp_path):
    drawn = []

    def draw_recoveries(deaths, *args):
        drawn.append([death.channel for death in deaths])
        return figures.draw_recoveries(deaths, *args)

    monkeypatch.setattr(report, 'draw_recoveries', draw_recoveries)
    made_up(tmp_path)
    page = tmp_path / 'README.md'
    page.write_text(
        'before\n<!-- results: begin -->\nold\n<!-- results: end -->\nafter\n'
    )
    main(monkeypatch, tmp_path)
    text = page.read_text()
    assert text.startswith('before\n') and text.endswith('\nafter\n')
    assert 'old' not in text
    assert (
        'more accurate than BN in 1 of 2 comparisons, and significantly '
        'less accurate in 1: learning rate 0.8, weight decay 0.0005, '
        'rounds 1 to 10 (-0.02'
    ) in text
    rows = [
        [cell.strip() for cell in line.split('|')[1:-1]]
        for line in text.splitlines()
        if line.startswith('| ')
    ]
    windows = [row for row in rows if row[2:3] == ['41 to 50']]
    assert len(windows) == 1
    assert float(windows[0][3]) == pytest.approx(0.1, abs=1.5e-3)
    assert windows[0][5] == '< 0.001' and windows[0][6] == '3'
    of_bn = next(row for row in rows if row[0] == 'BN')
    assert [float(cell.split(' ± ')[0]) for cell in of_bn[1:3]] == pytest.approx(
        [0, -0.1], abs=1.5e-3
    )
    assert of_bn[3:] == ['0.0 / 25.0', '12.5 / 12.5', '20.0 / 20.0']
    # Three seeds; the last death could still recover. Early recoveries alone
    # would be a biased sample of such deaths, so the figure leaves them out.
    assert drawn == [[0, 1, 2] * 3]
    assert 'effective rank and weight norm over the rounds' in text
    assert rows[-2:] == [
        ['< 0.1', '4 to 10', '6', '0', '0', '0', '50', '50', '50'],
        ['>= 0.1', '4 to 10', '3', '100', '0', '0', '0', '0', '0'],
    ]
    for name in ('0.0005', 'recovery'):
        assert (tmp_path / f'digits-plain-{name}.png').stat().st_size > 10000
    main(monkeypatch, tmp_path)
    assert page.read_text() == text


def test_windows_without_a_p_value_are_left_out():
    """The same difference for all seeds has none."""
    rows = {
        Run(method, *HIGH, seed): [Round(1, accuracy, 0.0, 1.0, 1.0, 0, 0)]
        for seed in range(3)
        for method, accuracy in (('BN', 0.5), ('psBN', 0.625))
    }
    assert Series(rows, METHODS).compare([HIGH], 'accuracy', [1]) == []


def test_report_without_runs(monkeypatch, tmp_path):
    main(monkeypatch, tmp_path)
    assert (tmp_path / 'report.md').read_text() == 'There are no results yet.\n'


@pytest.mark.parametrize(
    'damage',
    [
        lambda text: text.replace('accuracy', 'score'),
        lambda text: text[:-10],
        lambda text: text.replace(',20.0,', ',x,'),
        lambda text: '',
    ],
)
def test_damaged_results(monkeypatch, tmp_path, damage):
    made_up(tmp_path, seeds=1)
    file = tmp_path / 'digits-plain.csv'
    file.write_text(damage(file.read_text()))
    with pytest.raises(
        SystemExit,
        match=rf'error: line \d+ of {file} is not '
        'a result',
    ):
        main(monkeypatch, tmp_path)


def test_bad_input(short, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit, match='error: CIFAR-10 has not been found'):
        main(monkeypatch, tmp_path, '--data', 'cifar10', '--data-root', str(tmp_path))
    for option in ('--seeds', '--rounds', '--processes'):
        with pytest.raises(SystemExit) as error:
            main(monkeypatch, tmp_path, option, '0')
        assert error.value.code == 2
        assert 'must be at least 1' in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        main(monkeypatch, tmp_path, '--device', 'cpux')
    assert error.value.code == 2
    assert '--device cpux cannot be used' in capsys.readouterr().err
    job = STUDY, Run('BN', *HIGH, 0)
    file = checkpoint_of(job, tmp_path)
    file.parent.mkdir()
    file.write_bytes(b'not a checkpoint')
    with pytest.raises(InputError, match='Delete it'):
        train(job, 1, tmp_path)


def test_cifar10_is_reduced_by_means(monkeypatch):
    full = tasks.Data(
        torch.rand(4, 3, 32, 32),
        torch.arange(4),
        torch.rand(2, 3, 32, 32),
        torch.arange(2),
        10,
    )

    def load(*args):
        return full

    load.cache_clear = lambda: None
    monkeypatch.setattr(tasks, 'load', load)
    found = tasks.images.__wrapped__('cifar10', None, 'cpu')
    corner = full.train_images[1, 2, 6:8, 10:12]
    assert found.train_images.shape == (4, 3, 16, 16)
    torch.testing.assert_close(found.train_images[1, 2, 3, 5], corner.mean())
    torch.testing.assert_close(found.test_images, F.avg_pool2d(full.test_images, 2))


@pytest.mark.slow
def test_ctrl_c_ends_with_a_message(tmp_path):
    process = subprocess.Popen(
        [
            sys.executable,
            '-m',
            'benchmarks.rounds',
            '--data',
            'digits',
            '--processes',
            '1',
            '--results',
            str(tmp_path),
            '--work-dir',
            str(tmp_path),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A background job of a script would ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert 'runs are missing, 1 in parallel' in process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        _, message = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130
    assert 'resumes' in message
    assert 'Traceback' not in message


def test_the_page_on_retraining_has_the_figure_of_the_study():
    figure = ROOT / 'benchmarks' / 'rounds' / 'cifar10-plain.png'
    assert (ROOT / 'docs' / 'rounds.png').read_bytes() == figure.read_bytes()
