"""benchmarks.detector_rounds: tasks, methods, resuming and the report."""

import math
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers import PATIENCE, ROOT, wait_for

from benchmarks.detector_rounds import __main__ as command
from benchmarks.detector_rounds import pruning, studies, tasks, training
from benchmarks.detector_rounds.detectors import CLASS_LAYERS, config_of, new_detector
from benchmarks.detector_rounds.pilot import FOLDER as PILOT
from benchmarks.detector_rounds.pilot import (
    LRS,
    PLACES,
    find_lrs,
    mean_scores,
    rates_from,
)
from benchmarks.detector_rounds.report import accumulation
from benchmarks.detector_rounds.results import Results
from benchmarks.detector_rounds.studies import (
    METHODS,
    REFERENCES,
    RESTART,
    SCRATCH,
    USUAL_LR,
    Run,
    Setting,
    Study,
    make_studies,
    rounds_of,
)
from benchmarks.detector_rounds.training import (
    Round,
    checkpoint_of,
    start_of,
    train,
    train_start,
)
from benchmarks.rounds.training import decay_of
from benchmarks.shared.rows import read_rows
from benchmarks.shared.series import Series
from mmpsbn.compare.placing import FIXED
from mmpsbn.errors import InputError
from mmpsbn.prune import Pruned, Removal

SHORT = dict(training=8, epochs=2)
SETTING = Setting('backbone', 0.04)
EVERYWHERE = Setting('everywhere', 0.04)
STUDY = Study('retinanet', (SETTING,))


@pytest.fixture
def short(monkeypatch):
    """Rounds of two steps, and a checkpoint after each one."""
    for kind in (tasks.ROUND, *tasks.START.values()):
        for name, value in SHORT.items():
            monkeypatch.setitem(kind, name, value)
    monkeypatch.setattr(tasks, 'TEST', 4)
    monkeypatch.setattr(training, 'CHECKPOINT_EVERY', 1)
    monkeypatch.setattr(studies, 'ROUNDS', 4)


@pytest.fixture
def at_begin(monkeypatch):
    """The weights and the task of each call of ``fit``, by method."""
    seen, fit = {}, training.fit

    def recorded(model, task, study, run):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        seen.setdefault(run.method, []).append((state, task))
        return fit(model, task, study, run)

    monkeypatch.setattr(training, 'fit', recorded)
    return seen


def started(run, folder, study=STUDY):
    train_start((study, run), folder)
    return torch.load(start_of((study, run), folder), weights_only=True)


def main(monkeypatch, folder, *args, of=command):
    monkeypatch.setattr(
        sys,
        'argv',
        ['-', '--results', str(folder), '--work-dir', str(folder / 'work'), *args],
    )
    of.main()


def use(monkeypatch, study):
    """Let the command know one study only."""
    monkeypatch.setattr(command, 'find_lrs', lambda folder: {})
    monkeypatch.setattr(command, 'make_studies', lambda lrs: [study])


def write_pilot(folder, highest):
    """Write a pilot's results, in which rates up to the highest one work."""
    for detector in studies.DETECTORS:
        results = Results(folder, Study(detector, ()))
        for place, lr in highest.items():
            if place.detector == detector:
                for tried in LRS:
                    row = Round(2, 0.4 * (tried <= lr), 0, 0, 0, 0, 0, 0)
                    results.add(Run(RESTART, place.placement, tried, 1000), [row])


def group_exists(number):
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def truth(images):
    return [sample.instances for _, sample in images]


def test_tasks_depend_on_seed_and_round_alone():
    first, again, other, third = (
        tasks.task_of(seed, number, **SHORT)
        for seed, number in ((3, 1), (3, 1), (3, 2), (4, 1))
    )
    assert truth(first.train) == truth(again.train)
    assert all(torch.equal(one[0], two[0]) for one, two in zip(first.test, again.test))
    assert (first.batches == again.batches).all()
    for task in (other, third):
        assert truth(task.train) != truth(first.train)
    assert first.batches.shape == (2, 8)
    assert {*first.batches[0]} == set(range(8))
    large = tasks.task_of(3, 1, 40, 1)
    labels = [one['bbox_label'] for own in truth(large.train) for one in own]
    assert {*labels} == set(range(tasks.CLASSES))
    sample = large.train[0][1]
    assert sample.gt_instances.bboxes.tolist() == [
        one['bbox'] for one in sample.instances
    ]


def test_methods_start_from_the_same_weights(short, at_begin, tmp_path):
    for method in (*METHODS, *REFERENCES):
        run = Run(method, *SETTING, 0)
        start = started(run, tmp_path)['model']
        train((STUDY, run), 4 if method in REFERENCES else 2, tmp_path)
    states = {method: [state for state, _ in own] for method, own in at_begin.items()}
    states['BN'].pop(0)  # That of the starting detector.
    tests = {method: truth(own[-1][1].test) for method, own in at_begin.items()}
    for method in REFERENCES:
        tests[method] = truth(at_begin[method][0][1].test)
    assert all(own == tests['BN'] for own in tests.values())
    reset = CLASS_LAYERS['retinanet']
    for method in METHODS:
        first, second = states[method]
        for name, value in first.items():
            # All methods have the same new class layers.
            assert torch.equal(value, states['BN'][0][name])
            kept = torch.equal(value, start[name])
            assert kept != (name.rpartition('.')[0] in reset)
            if '.bn' in name and not name.endswith('num_batches_tracked'):
                fixed = method == 'FrozenBN' or (
                    method == 'norm_eval' and '.running_' in name
                )
                assert torch.equal(second[name], value) == fixed
    second, fourth = states[RESTART]
    for name, value in second.items():
        new = name.rpartition('.')[0] in reset
        # Both have the class layers of round 2.
        assert torch.equal(value, (states['BN'][1] if new else start)[name])
        assert new or torch.equal(value, fourth[name])
    random, other = states[SCRATCH]
    for name, value in random.items():
        new = name.rpartition('.')[0] in reset
        assert not new or torch.equal(value, second[name])
        if name.endswith('conv1.weight'):
            drawn = (start[name], second[name], other[name])
            assert not any(torch.equal(value, one) for one in drawn)
    moved = 'backbone.layer1.0.bn1.bias'
    assert not torch.equal(states['BN'][1][moved], states['psBN'][1][moved])


@pytest.mark.parametrize('detector', studies.DETECTORS)
def test_norm_layers_are_everywhere(detector):
    setting = {
        place: new_detector(detector, place, 'psBN') for place in studies.PLACEMENTS
    }
    count = {
        place: sum('PSBatchNorm' in type(module).__name__ for module in model.modules())
        for place, model in setting.items()
    }
    assert count['backbone'] == 20
    assert count['everywhere'] > count['backbone'] + 8
    for name in CLASS_LAYERS[detector]:
        layer = setting['backbone'].get_submodule(name)
        assert len(layer.weight) % tasks.CLASSES in (0, 1)


def test_frozen_norm_layers_are_fixed_everywhere(short, tmp_path):
    study = Study('faster-rcnn', (EVERYWHERE,))
    run = Run('FrozenBN', *EVERYWHERE, 0)
    start = started(run, tmp_path, study)['model']
    rows = train((study, run), 1, tmp_path)
    state = torch.load(checkpoint_of((study, run), tmp_path), weights_only=True)
    model = new_detector('faster-rcnn', 'everywhere', 'BN')
    norms = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    ]
    assert any(name.startswith('roi_head') for name in norms)
    for name, value in state['model'].items():
        fixed = name.rpartition('.')[0] in norms
        assert torch.equal(value, start[name]) == fixed or 'rpn' in name
    assert rows[0].round == 1 and 0 <= rows[0].dead_by_parameters <= 1


def test_dead_channels_are_followed(short, monkeypatch, tmp_path):
    run = Run('BN', *SETTING, 0)
    file = start_of((STUDY, run), tmp_path)
    state = started(run, tmp_path)
    place = list(state['model']).index('backbone.layer1.0.bn1.weight')
    name = list(state['model'])[place].rpartition('.')[0]
    state['model'][f'{name}.weight'][:4] = 1e-9
    state['model'][f'{name}.bias'][:4] = -1
    torch.save(state, file)
    rows = train((STUDY, run), 2, tmp_path)
    # The layers of the start were judged before, so four channels have died.
    assert rows[0].died == rows[0].died_by_parameters == 4
    channels = 16 + 2 * sum((16, 32, 64, 128))
    for row in rows:
        assert row.dead == row.dead_by_parameters == round(4 / channels, 4)
    assert rows[1].died == rows[1].recovered == 0


@pytest.mark.parametrize('method', ['psBN', *REFERENCES])
def test_a_killed_run_resumes(short, monkeypatch, tmp_path, method):
    job = STUDY, Run(method, *SETTING, 0)
    started(job[1], tmp_path)
    whole = train(job, 4, tmp_path)
    assert [row.round for row in whole] == rounds_of(method, 4)
    checkpoint_of(job, tmp_path).unlink()
    train(job, 2, tmp_path)
    calls, fit = [], training.fit
    monkeypatch.setattr(training, 'fit', lambda *args: calls.append(args) or fit(*args))
    assert train(job, 4, tmp_path) == whole
    assert len(calls) == len(rounds_of(method, 4)) - len(rounds_of(method, 2))


@pytest.mark.parametrize('detector', studies.DETECTORS)
def test_a_lost_detector_has_no_map(short, tmp_path, detector):
    study, run = Study(detector, ()), Run('BN', 'backbone', 1e30, 0)
    started(run, tmp_path, study)
    rows = train((study, run), 2, tmp_path)
    assert [(row.round, row.mAP) for row in rows] == [(1, 0), (2, 0)]
    assert all(math.isnan(row.dead) for row in rows)


def test_random_weights_do_not_stay_lost(short, monkeypatch, tmp_path):
    job = STUDY, Run(SCRATCH, *SETTING, 0)
    started(job[1], tmp_path)
    fit, finite = training.fit, iter((False, True))
    monkeypatch.setattr(training, 'fit', lambda *args: next(finite) and fit(*args))
    assert [math.isnan(row.dead) for row in train(job, 4, tmp_path)] == [True, False]


def test_random_weights_are_trained_in_the_last_rounds():
    assert rounds_of(SCRATCH, 40) == [32, 34, 36, 38, 40]
    assert rounds_of(SCRATCH, 36) == [32, 34, 36] and not rounds_of(SCRATCH, 20)


def test_a_damaged_checkpoint(tmp_path):
    run = Run('BN', *SETTING, 0)
    file = start_of((STUDY, run), tmp_path)
    file.parent.mkdir()
    file.write_bytes(b'not a checkpoint')
    with pytest.raises(InputError, match='Delete it'):
        train((STUDY, run), 1, tmp_path)


def test_runs_are_ordered_and_not_repeated(
    short, in_this_process, monkeypatch, tmp_path, capsys
):
    rates = dict.fromkeys(PLACES, (0.64, USUAL_LR, 0.02, 0.01))
    first = make_studies(rates)[0].runs(3)
    assert len(first) == (2 * (5 + 5 + 4 + 3) + 3) * 3
    assert [run.method for run in first[:3]] == ['BN', 'psBN', RESTART]
    # What comes later adds to what the first ones show.
    rest = 4 * 3 * ['main'] * 3 + 4 * 3 * [SCRATCH]
    assert [SCRATCH if run.method == SCRATCH else 'main' for run in first[:48]] == rest
    assert {run.method for run in first[48:] if run.lr >= USUAL_LR} == {*FIXED}
    low = {run.method for run in first if run.lr == 0.02}
    lowest = {run.method for run in first if run.lr == 0.01}
    assert low == {*METHODS, RESTART} and lowest == low - {*FIXED}
    use(monkeypatch, STUDY)
    options = '--train', '--rounds', '2', '--seeds', '1'
    main(monkeypatch, tmp_path, *options)
    # All runs have one starting detector, which is trained before them.
    assert [run for _, run in in_this_process[1:]] == STUDY.runs(1)
    file = tmp_path / 'retinanet.csv'
    text = file.read_text()
    assert len(text.splitlines()) == 1 + 4 * 2 + 2
    names = sorted(path.name for path in (tmp_path / 'work').rglob('*.pth'))
    assert names == ['start-backbone-0.pth']
    in_this_process.clear()
    main(monkeypatch, tmp_path, *options)
    assert in_this_process == []
    file.write_text('\n'.join(text.splitlines()[:-1]) + '\n')
    main(monkeypatch, tmp_path, *options)
    assert len(in_this_process) == 2 and file.read_text() == text
    assert '1 runs are missing' in capsys.readouterr().out


def test_learning_rates_come_from_the_pilot(tmp_path):
    scores = dict(zip(LRS, (0.1, 0.3, 0.36, 0.4, 0.38, 0.37, 0.35, 0.0)))
    assert rates_from(scores) == (0.32, USUAL_LR)
    assert rates_from(dict(zip(LRS, (0.4, 0.44, 0.4, 0.3)))) == (USUAL_LR,)
    assert rates_from(dict(zip(LRS, (0.4, 0.44, 0.39, 0.3)))) == (USUAL_LR, 0.02)
    assert rates_from(dict(zip(LRS, (0.44, 0.4, 0.39)))) == (USUAL_LR, 0.02, 0.01)
    highest = dict(zip(PLACES, LRS[LRS.index(USUAL_LR) + 1 :]))
    write_pilot(tmp_path, highest)
    rates = {place: (lr, USUAL_LR) for place, lr in highest.items()}
    assert find_lrs(tmp_path) == rates
    file = tmp_path / 'retinanet.csv'
    text = file.read_text()
    file.write_text(text.replace('0.01,1000,2,0.4', '0.01,1000,2,0.9'))
    for place in PLACES:
        if place.detector == 'retinanet':
            rates[place] = USUAL_LR, 0.01
    assert find_lrs(tmp_path) == rates
    file.write_text(text.replace(',0.4,', ',0.1,'))
    with pytest.raises(InputError, match='retinanet .* mAP of 0.100 .* for longer'):
        find_lrs(tmp_path)
    file.write_text('\n'.join(text.splitlines()[:-1]) + '\n')
    with pytest.raises(InputError, match='everywhere has tried 7 of 8 .* Run python'):
        find_lrs(tmp_path)


def test_the_rates_of_the_study():
    text = ' '.join((command.FOLDER / 'README.md').read_text().split())
    for place in PLACES:
        scores = mean_scores(Results(PILOT, Study(place.detector, ())), place.placement)
        if place != ('faster-rcnn', 'backbone'):
            assert rates_from(scores) == (USUAL_LR,)
            continue
        assert rates_from(scores) == (USUAL_LR, 0.02, 0.01)
        share = scores[USUAL_LR] / scores[0.01]
        assert f'its mAP is {share:.2f} times that of 0.01' in text


def test_report_from_csv_alone(monkeypatch, tmp_path):
    study = Study('faster-rcnn', (SETTING,))
    use(monkeypatch, study)
    results = Results(tmp_path, study)
    for run in study.runs(3):
        lower = 0.1 * (run.method == 'BN')
        dead = run.method == 'BN'
        results.add(
            run,
            [
                Round(
                    number,
                    0.4
                    + 0.01 * run.seed
                    - lower * (number > 10)
                    + 1e-3 * (run.seed * (run.method == 'psBN')),
                    dead * number / 100,
                    2,
                    1,
                    dead / 8,
                    1,
                    0,
                )
                for number in rounds_of(run.method, 20)
            ],
        )
    page = tmp_path / 'README.md'
    page.write_text('a\n<!-- results: begin -->\nb\n<!-- results: end -->\nc\n')
    main(monkeypatch, tmp_path)
    text = page.read_text()
    rows = [
        [cell.strip() for cell in line.split('|')[1:-1]]
        for line in text.splitlines()
        if line.startswith('| backbone')
    ]
    bn = next(row for row in rows if row[1] == 'BN')
    assert bn[2:] == [
        '+0.000 ± 0.000',
        '-0.100 ± 0.000',
        '5.5 / 15.5 ± 0.0',
        '40 / 20',
        '12.5 / 12.5 ± 0.0',
        '20 / 0',
    ]
    decay = decay_of(0.04, 1e-4, tasks.STEPS)
    cfg = config_of('retinanet', 'backbone', 'BN').optim_wrapper.optimizer
    assert decay == pytest.approx(cfg.weight_decay / 0.1 * 0.04 * 46, rel=0.01)
    assert rows[-1][:3] == ['backbone, lr 0.04', '11 to 20', '+0.101']
    changes = next(row for row in rows if row[3] == 'BN')
    assert changes[1:3] == [f'{decay:.2g}', f'{40 * decay:.2g}']
    assert changes[4:] == ['**+10.0 ± 0.0**', '+0.0 ± 0.0']
    assert 'higher than that of BN in 1 of 2 comparisons' in text
    assert (tmp_path / 'faster-rcnn.png').stat().st_size > 10000
    main(monkeypatch, tmp_path)
    assert page.read_text() == text


def test_changes_are_those_of_each_seed():
    def rows(*values):
        return [Round(at, 0, *[dead] * 6) for at, dead in enumerate(values, 1)]

    ended = rows(*[0.1] * 10, *[0.4] * 10)
    lost = rows(*[0.2] * 10, *[math.nan] * 10)
    runs = {0: rows(*[0.3] * 5), 1: ended, 2: lost}
    series = Series(
        {Run('BN', *SETTING, seed): own for seed, own in runs.items()}, METHODS
    )
    assert series.change(SETTING, 'BN', 'dead', 10, 20) == pytest.approx([0.3])
    assert '**+30.0**' in accumulation(series, [SETTING])
    short = Series({Run('BN', *SETTING, 0): runs[0]}, METHODS)
    assert accumulation(short, [SETTING]) == ''


def test_pruning_removes_what_is_dead(short, in_this_process, monkeypatch, tmp_path):
    monkeypatch.setattr(pruning, 'ROUNDS', 2)
    monkeypatch.setattr(pruning, 'DETECTORS', ('retinanet',))
    file, work = tmp_path / pruning.FILE, tmp_path / 'work'
    job = pruning.job_of(pruning.Detector('retinanet', 2, 0))

    def measured():
        main(monkeypatch, tmp_path, '--seeds', '1', of=pruning)
        assert not checkpoint_of(job, work).exists()
        rows = read_rows(file, pruning.Detector, pruning.Size)
        return [own[0] for _, own in sorted(rows.items())]

    before = measured()
    assert measured() == before and len(in_this_process) == 2
    file.unlink()
    state = started(job[1], work)
    for value, name in ((0, 'weight'), (-9, 'bias')):
        state['model'][f'backbone.layer4.0.bn1.{name}'][:40] = value
    torch.save(state, start_of(job, work))
    for size, other in zip(measured(), before):
        assert size.removed == other.removed + 40
        # A 3 x 3 conv of 128 channels reads them.
        assert 40 * 9 * 128 < other.remaining - size.remaining < size.parameters
        assert size.parameters == other.parameters
        assert size.difference < 1e-5 and size.same == size.detections
    nothing = Pruned(Removal({}, {}, 0, Counter()), None, None, None, None)
    monkeypatch.setattr(pruning, 'prune', lambda *args, **kwargs: nothing)
    file.unlink()
    for size in measured():
        assert not size.removed and size.remaining == size.parameters > 0


def test_a_lost_detector_cannot_be_pruned(short, monkeypatch, tmp_path):
    monkeypatch.setattr(pruning, 'USUAL_LR', 1e30)
    with pytest.raises(InputError, match='of round 0, .* the loss of the run was not'):
        pruning.measure(pruning.Detector('retinanet', 2, 0), tmp_path)


@pytest.mark.slow
def test_sigterm_ends_the_trainings(tmp_path):
    write_pilot(tmp_path / 'pilot', dict.fromkeys(PLACES, 0.32))
    process = subprocess.Popen(
        [sys.executable, '-m', 'benchmarks.detector_rounds', '--train']
        + ['--processes', '1', '--results', str(tmp_path), '--work-dir', str(tmp_path)]
        + ['--pilot', str(tmp_path / 'pilot')],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert 'runs are missing, 1 in parallel' in process.stdout.readline()
        children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
        wait_for(lambda: len(children.read_text().split()) > 1)
        process.send_signal(signal.SIGTERM)
        _, message = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130
        assert 'resumes from the last checkpoints' in message
        wait_for(lambda: not group_exists(process.pid))
    finally:
        process.kill()
