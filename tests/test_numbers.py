"""The documentation has the numbers of the studies' CSV files."""

import csv
import inspect
import re
import runpy
import shutil
import sys
from collections import Counter
from functools import partial
from itertools import product

import numpy as np
import pytest
from helpers import ROOT

from benchmarks import (
    collapse,
    collapse_watch,
    detector_rounds,
    gpu,
    inference,
    memory,
    mimicnorm,
    optimizer_step,
    real_images,
    rounds,
)
from benchmarks.collapse import experiments as collapse_experiments
from benchmarks.collapse import report as collapse_report
from benchmarks.collapse.fits import format_exponent
from benchmarks.detector_rounds import pruning as detector_pruning
from benchmarks.detector_rounds import report as detector_report
from benchmarks.detector_rounds import studies as detector_studies
from benchmarks.detector_rounds.pilot import FOLDER as PILOT
from benchmarks.detector_rounds.pilot import PLACES, find_lrs, mean_scores
from benchmarks.detector_rounds.results import Results as DetectorResults
from benchmarks.gpu import page as gpu_page
from benchmarks.mimicnorm import experiments as mimicnorm_experiments
from benchmarks.real_images.results import Results
from benchmarks.real_images.studies import STUDIES
from benchmarks.rounds import pruning
from benchmarks.rounds.report import AT
from benchmarks.rounds.results import Results as RoundResults
from benchmarks.rounds.studies import METHODS, SCRATCH, Run, Setting
from benchmarks.rounds.studies import STUDIES as ROUND_STUDIES
from benchmarks.rounds.training import decay_of
from benchmarks.shared import tables
from benchmarks.shared.costs import Costs
from benchmarks.shared.rows import read_rows
from benchmarks.shared.series import WINDOW, Series
from mmpsbn.compare.placing import FIXED
from mmpsbn.compare.report import compare_with_baseline
from mmpsbn.hooks import FilterCollapseHook
from mmpsbn.statistics.intervals import confidence_margin
from mmpsbn.statistics.tables import (
    format_difference,
    format_interval,
    format_lr,
    format_mean,
)

NAMES = {'frozen BN': 'FrozenBN'}
# The schedule of each study in the tables, as a multiple of its first one.
LENGTHS = {'faster-rcnn': 1, 'retinanet': 1.5, 'scratch': 2}
LOW, HALF, FULL = (Setting(lr, 5e-4) for lr in (0.2, 0.4, 0.8))
NUMERALS = ('none', 'one', 'two', 'three', 'four', 'five')
ROUNDS_PAGE = 'benchmarks/rounds/README.md'
PLAIN = next(one for one in ROUND_STUDIES if one.name == 'cifar10-plain')


def tables_of(page):
    """The tables of a page: for each its rows, as lists of cells."""
    found = re.findall(r'(?:^\|.*\|\n)+', (ROOT / page).read_text(), re.M)
    return [
        [[cell.strip() for cell in line.strip('|\n').split('|')] for line in lines]
        for lines in (table.splitlines() for table in found)
    ]


def table_with(page, *head):
    """The rows of the first table whose header begins with some cells."""
    rows = next(t for t in tables_of(page) if t[0][: len(head)] == list(head))
    return rows[2:]


def folder_of(package):
    return ROOT / 'benchmarks' / package.__name__.rpartition('.')[2]


@pytest.fixture(scope='module')
def neu_det():
    """For each study of real photographs its normalizations."""
    found = {}
    for name, study in STUDIES.items():
        csv = folder_of(real_images) / f'{name}.csv'
        found[name] = Results(csv).finals(study.norms, study.untuned)
    return found


@pytest.fixture(scope='module')
def networks():
    """The rounds of each study of classifiers, by its name."""
    return {
        study.name: Series(
            RoundResults(folder_of(rounds), study).rounds, (SCRATCH, *METHODS)
        )
        for study in ROUND_STUDIES
    }


@pytest.mark.parametrize(
    'package',
    [real_images, rounds, detector_rounds, collapse, mimicnorm, gpu],
    ids=lambda p: p.__name__,
)
def test_reports_are_those_of_the_csv_files(package, monkeypatch, tmp_path):
    folder = folder_of(package)
    for file in ('README.md', *(path.name for path in folder.glob('*.csv'))):
        shutil.copy(folder / file, tmp_path)
    option = '--report' if package is gpu else '--results'
    monkeypatch.setattr(sys, 'argv', [package.__name__, option, str(tmp_path)])
    runpy.run_module(package.__name__, run_name='__main__')
    page = (tmp_path / 'README.md').read_text()
    assert page == (folder / 'README.md').read_text()


def words_of(page):
    return ' '.join((ROOT / page).read_text().split())


class Trainings:
    """The results of a study on a data set."""

    def __init__(self, study, data='digits'):
        self.results = study.read(study.folder)[data]

    def of(self, **settings):
        """The results of a variant, in the order of the seeds."""
        return [
            own[0]
            for run, own in sorted(self.results.items())
            if run == type(run)(run.seed, epochs=run.epochs, **settings)
        ]

    def accuracy(self, **settings):
        """The mean accuracy of the seeds, in percent."""
        return 100 * np.mean([one.accuracy for one in self.of(**settings)])

    def share(self, what='dead', **settings):
        """The mean share of the channels at the end, in percent."""
        found = [
            100 * getattr(own, what)[-1] / own.channels
            for own in self.of(**settings)
            if not own.diverged
        ]
        assert found
        return f'{np.mean(found):.1f}'

    def shares(self, **settings):
        """The shares of dead channels under BN and psBN."""
        return tuple(self.share(**settings, alpha=alpha) for alpha in (0.0, 0.1))


def differences(rows, length=1, baseline='BN'):
    """For each normalization its difference to a baseline."""
    return {
        one.row.norm: one
        for one in compare_with_baseline(rows, baseline)
        if one.row.length == length
    }


def with_interval(paired, sign='+'):
    interval = format_interval(paired.low, paired.high)
    return f'{format_difference(paired.mean).lstrip("" if sign else "+")} ({interval})'


def opposite(paired):
    """The difference the other way around, with its interval."""
    return f'{-paired.mean:.3f} ({format_interval(-paired.high, -paired.low)})'


@pytest.mark.parametrize('page', ['README.md', 'docs/choosing.md'])
def test_neu_det(neu_det, page):
    head = ['Norm', 'Faster R-CNN', 'RetinaNet', 'Faster R-CNN, random weights']
    table = {NAMES.get(name, name): cells for name, *cells in table_with(page, *head)}
    for column, (name, study) in enumerate(neu_det.items()):
        rows = {row.norm: row for row in study if row.length == LENGTHS[name]}
        mean, interval = format_mean(rows['BN'].scores)
        assert table['BN'][column] == f'{mean} ({interval})'
        # README does not explain the control with a last BN alone.
        shown = set(rows) - ({'BN+LastBN'} if page == 'README.md' else set())
        assert {name for name in table if table[name][column]} == shown
        for norm, one in differences(study, LENGTHS[name]).items():
            if norm not in shown:
                continue
            text = with_interval(one.paired)
            expected = f'**{text}**' if one.significant else text
            assert table[norm][column] == expected, (column, norm)


def test_sentences_on_neu_det(neu_det):
    text, front = words_of('docs/choosing.md'), words_of('README.md')
    full = {name: differences(rows, LENGTHS[name]) for name, rows in neu_det.items()}
    finetuned = ('faster-rcnn', 'retinanet')
    for norm, words in (
        ('MimicNorm', 'MimicNorm is {} mAP above BN'),
        ('FrozenBN', 'above BN, frozen BN {}'),
    ):
        both = [with_interval(full[study][norm].paired, '') for study in finetuned]
        assert words.format(' and '.join(both)) in text
        assert all(full[study][norm].significant for study in finetuned)
    scratch = full['scratch']
    assert f'{with_interval(scratch["MimicNorm"].paired, "")} mAP above BN' in text
    assert scratch['psBN'].significant
    assert f'{-scratch["psBN"].paired.mean:.3f} mAP below it' in text
    psbn = [full[study]['psBN'] for study in finetuned]
    both = [format_interval(one.paired.low, one.paired.high) for one in psbn]
    assert f'when finetuned ({both[0]} and {both[1]})' in text
    assert not any(one.significant for one in psbn)
    assert not full['faster-rcnn']['BN+LastBN'].significant
    # The first schedule of RetinaNet, and half of both.
    first = differences(neu_det['retinanet'])
    both = [first[norm] for norm in ('GN', 'BN+LastBN')]
    listed = ' and '.join(with_interval(one.paired) for one in both)
    assert f'for 6 epochs with them: {listed}' in text
    assert not any(one.significant for one in both)
    half = [differences(neu_det[study], 0.5)['MimicNorm'] for study in finetuned]
    assert not half[0].significant and half[1].significant
    steps = half[1], first['MimicNorm'], full['retinanet']['MimicNorm']
    means = [f'{one.paired.mean:.3f}' for one in steps]
    assert f'difference is {means[0]}, {means[1]} and {means[2]} after' in text
    steps = (
        half[0],
        full['faster-rcnn']['MimicNorm'],
        differences(neu_det['scratch'])['MimicNorm'],
        scratch['MimicNorm'],
    )
    means = [f'{one.paired.mean:.3f}' for one in steps]
    assert f'RetinaNet, {means[0]} (not significant) and {means[1]} after' in text
    assert f'and {means[2]} and {means[3]} after 6 and 12 epochs' in text
    frozen = [
        differences(neu_det[one], LENGTHS[one], 'MimicNorm')['FrozenBN']
        for one in finetuned
    ]
    assert not frozen[0].significant and frozen[1].significant
    found = opposite(frozen[1].paired)
    assert f'MimicNorm is above by {found}' in text and f'above it by {found}' in front
    last = [differences(neu_det[one], 1, 'MimicNorm')['BN+LastBN'] for one in finetuned]
    assert f'above BN+LastBN by {opposite(last[1].paired)}' in text
    assert last[1].significant and not last[0].significant
    rows = {
        (study, row.norm): row
        for study, length in LENGTHS.items()
        for row in neu_det[study]
        if row.length == length
    }
    scores = [format_mean(rows[study, 'BN'].scores50)[0] for study in neu_det]
    assert f'mAP50 is {scores[0]}, {scores[1]} and {scores[2]}' in front
    assert all(float(score) >= 0.5 for score in scores)
    dead = [
        100 * np.mean(rows[study, norm].dead)
        for study in finetuned
        for norm in ('FrozenBN', 'MimicNorm', 'BN', 'psBN')
    ]
    most, least = dead[:2] + dead[4:6], dead[2:4] + dead[6:]
    assert f'have {min(most):.0f} to {max(most):.0f} %, and BN and psBN 1 %' in text
    assert {f'{one:.0f}' for one in least} == {'1'}
    lrs = [format_lr(rows['retinanet', norm].lr) for norm in ('MimicNorm', 'FrozenBN')]
    assert f'frozen BN is {lrs[0]}' in text and lrs[0] == lrs[1]
    assert f'that of BN is {format_lr(rows["retinanet", "BN"].lr)}' in text
    # D is w / (1 - m) times the sum of the rates, about half of lr x steps.
    steps = {'faster-rcnn': 720, 'retinanet': 1620}
    decays = [
        1e-4 / (1 - 0.9) * rows[study, norm].lr * steps[study] / 2
        for study in finetuned
        for norm in ('BN', 'psBN', 'MimicNorm')
    ]
    assert f'is at most {max(decays):.2f}' in text


def dead_share(results, setting, method, end):
    """The mean share of dead channels in the rounds up to one, in percent."""
    return 100 * np.mean(results.window(setting, method, 'dead', end))


def relative(results, setting, method, end=AT[-1], baseline=SCRATCH):
    """The mean accuracy relative to another method, its margin and interval."""
    own = results.window(setting, method, 'accuracy', end, baseline)
    mean, margin = np.mean(own), confidence_margin(own)
    return mean, margin, f'{mean:.3f} ({mean - margin:.3f} to {mean + margin:.3f})'


def test_table_on_retraining(networks):
    table = table_with('docs/retraining.md', f'Learning rate {FULL.lr:g}, rounds')
    plain = networks['cifar10-plain']
    assert len(table) == 4
    for name, *cells in table:
        method, measure = name.split(': ')
        for end, cell in zip(AT, cells, strict=True):
            if measure == 'dead channels':
                assert cell == f'{dead_share(plain, FULL, method, end):.0f} %', name
            else:
                assert measure == 'accuracy minus that from scratch'
                mean, margin, _ = relative(plain, FULL, method, end)
                assert cell == f'{mean:+.3f} ± {margin:.3f}', (name, end)


def comparisons(networks):
    """psBN minus BN at the end of each study: by its name and setting."""
    return {
        (study.name, one.setting, one.end): one
        for study in ROUND_STUDIES
        for one in networks[study.name].compare(study.methods, 'accuracy', AT)
    }


def test_sentences_on_dead_channels_after_all_rounds(networks):
    page, front = words_of('docs/retraining.md'), words_of('README.md')
    text, choosing = words_of(ROUNDS_PAGE), words_of('docs/choosing.md')

    def shares(setting, method):
        return [dead_share(own, setting, method, 150) for own in networks.values()]

    lists = {
        (setting, method): '{:.0f}, {:.0f} and {:.0f} %'.format(
            *shares(setting, method)
        )
        for setting in (FULL, LOW)
        for method in ('BN', 'psBN')
    }
    for setting in (FULL, LOW):
        bn, psbn = lists[setting, 'BN'], lists[setting, 'psBN']
        assert f'{bn} are dead with BN, and {psbn} with psBN' in text
    assert max(shares(LOW, SCRATCH)) == 0
    ranges = {
        key: f'{min(shares(*key)):.0f} to {max(shares(*key)):.0f} %' for key in lists
    }
    assert f'At lr 0.2, {ranges[LOW, "BN"]} of' in page
    (about,) = {f'{share:.0f}' for share in shares(LOW, 'psBN')}
    assert f'and about {about} % with psBN' in page
    assert (
        f'{ranges[FULL, "BN"]} dead channels with BN, {ranges[FULL, "psBN"]}'
        in choosing
    )
    plain = networks['cifar10-plain']
    dead = [dead_share(plain, FULL, own, 150) for own in ('BN', 'psBN')]
    assert f'with BN, {dead[0]:.0f} % of the channels are dead' in front
    assert f'with psBN {dead[1]:.0f} %' in front
    less, low = (
        dead_share(plain, one._replace(weight_decay=1e-4), 'BN', 150)
        for one in (FULL, LOW)
    )
    assert (
        f'{less:.0f} instead of {dead[0]:.0f} % of the plain '
        f"network's channels are dead at lr 0.8, and {low:.1f} instead"
        f' of {shares(LOW, "BN")[0]:.0f} %' in text
    )
    assert (
        f"{less:.0f} % of the plain network's channels are dead at 0.8, "
        f'and {low:.1f} % at 0.2' in page
    )
    found = [
        one
        for study in ROUND_STUDIES
        for one in networks[study.name].compare(study.methods, 'dead', AT)
        if one.p < 0.05
    ]
    assert all(one.paired.mean < 0 for one in found)
    assert f'{len(found)} of {len(comparisons(networks))} comparisons' in text
    redo = dead_share(networks['cifar10-residual'], FULL, 'BN+ReDo', 150)
    assert f'{redo:.0f} % of its channels are dead' in text


def test_sentences_on_accuracy_after_all_rounds(networks):
    page, text = words_of('docs/retraining.md'), words_of(ROUNDS_PAGE)
    found = comparisons(networks)
    full = [found[name, FULL, 150] for name in networks]
    assert all(one.p > 0.05 for one in full)
    assert [one.paired.p < 0.05 for one in full] == [False, False, True]
    means = '{:.3f}, {:.3f} and {:.3f}'.format(*(one.paired.mean for one in full))
    assert f'by {means}.' in page and f'({means})' in text
    lost = {
        method: [relative(own, FULL, method)[0] for own in networks.values()]
        for method in ('BN', 'psBN', 'GN')
    }
    assert (
        'BN is {:.3f}, {:.3f} and {:.3f} below a network from scratch, and psBN is '
        '{:.3f} below, {:.3f} above and {:.3f} above it'.format(
            *(-one for one in lost['BN']), -lost['psBN'][0], *lost['psBN'][1:]
        )
        in text
    )
    assert (
        f'accuracy of BN ends {-lost["BN"][0]:.3f} below a network from scratch, and '
        f'that of psBN {-lost["psBN"][0]:.3f}' in words_of('README.md')
    )
    others = [
        one
        for (_, setting, end), one in found.items()
        if end == 150 and setting != FULL
    ]
    largest = max(abs(one.paired.mean) for one in others)
    assert f'psBN and BN differ by {largest:.3f} at most at the end' in text
    ((key, one),) = [item for item in found.items() if item[1].p < 0.05]
    assert key == ('cifar10-residual', HALF, 100)
    mean, low, high = one.paired.mean, one.paired.low, one.paired.high
    assert f'Of all {len(found)} comparisons, one is significant' in text
    assert f'psBN is {mean:.3f} ({low:.3f} to {high:.3f}) above BN' in text
    dead = max(
        dead_share(networks[study.name], setting, 'BN', 150)
        for study in ROUND_STUDIES
        for setting in study.methods
        if setting != FULL
    )
    assert f"up to {dead:.0f} % of BN's channels" in text
    first = min(
        (one.paired.mean, name, setting)
        for (name, setting, end), one in found.items()
        if end == 10
    )
    assert first[1:] == ('cifar10-residual', Setting(0.8, 1e-4))
    assert f"its mean accuracy is up to {-first[0]:.3f} below BN's" in text
    means = {
        (study.name, setting, end): np.mean(
            networks[study.name].window(setting, 'psBN', 'accuracy', end, 'BN')
        )
        for study in ROUND_STUDIES
        for setting in study.methods
        for end in range(WINDOW, 151, WINDOW)
    }
    later = min(mean for (_, _, end), mean in means.items() if end > WINDOW)
    assert f'in later windows of ten rounds up to {-later:.3f}' in text
    half = min(mean for (_, one, _), mean in means.items() if one.lr == HALF.lr)
    assert f'At lr 0.4, it is up to {-half:.3f} below' in text
    shares = [
        (
            *(dead_share(networks[study.name], one, own, 10) for own in ('psBN', 'BN')),
            study.name,
            one,
        )
        for study in ROUND_STUDIES
        for one in study.methods
    ]
    psbn, bn, *where = max(shares, key=lambda one: one[0] - one[1])
    assert where == ['cifar10-plain', Setting(0.8, 1e-4)]
    share = f'up to {psbn:.1f} % of its channels are dead where BN has {bn:.1f} %'
    assert share in text
    for name, own in networks.items():
        accuracy = np.mean(own.window(FULL, 'GN', 'accuracy', 150))
        assert abs(accuracy - 0.5) < 0.005, name


def test_sentences_on_failures_and_recoveries(networks):
    page, text = words_of('docs/retraining.md'), words_of(ROUNDS_PAGE)
    failed = []
    totals = {'BN': [], 'psBN': []}
    for own in networks.values():
        ranks = own.window(FULL, 'BN', 'rank', 150, window=1)
        assert len(ranks) == 5
        failed.append(NUMERALS[sum(rank == 0 for rank in ranks)])
        for method, found in totals.items():
            died, recovered = (
                np.sum(own.window(FULL, method, measure, 150, window=150))
                for measure in ('died', 'recovered')
            )
            found.append(100 * recovered / died)
    at_chance = 'BN ends at chance in {}, {} and {}'.format(*failed)
    assert f'{at_chance} of five seeds' in page and f'{at_chance} of five seeds' in text
    bn, psbn = ('{:.0f}, {:.0f} and {:.0f}'.format(*found) for found in totals.values())
    assert f'{bn} recoveries for 100 deaths with BN, and {psbn} with psBN' in text
    late = [comparisons(networks)[name, FULL, 100] for name in networks]
    means = '{:.3f}, {:.3f} and {:.3f}'.format(*(one.paired.mean for one in late))
    assert f'In rounds 91 to 100, the differences are {means}' in text
    assert [one.paired.p < 0.05 for one in late] == [True, False, False]
    assert all(one.p > 0.05 for one in late)
    lower = [
        np.mean(own.window(setting, 'psBN', 'rank', 10, 'BN')) < 0
        for own, study in zip(networks.values(), ROUND_STUDIES)
        for setting in study.methods
    ]
    assert all(lower) and f'in all {len(lower)} settings' in text
    lost = -relative(networks['digits-plain'], FULL, 'BN')[0]
    assert f"BN's mean accuracy is {lost:.3f} below that of networks from" in text


def test_sentences_on_the_best_setting_and_on_remedies(networks):
    page, text = words_of('docs/retraining.md'), words_of(ROUNDS_PAGE)
    plain = networks['cifar10-plain']
    accuracies = {
        (np.mean(plain.window(setting, method, 'accuracy', 150)), method): setting
        for setting in PLAIN.methods
        for method in plain.methods(setting)
    }
    first, second = sorted(accuracies)[:-3:-1]
    assert (first[1], second[1]) == ('psBN', 'BN')
    best = accuracies[first]
    assert best == accuracies[second] == LOW._replace(weight_decay=1e-4)
    above = [relative(plain, best, method)[0] for method in ('psBN', 'BN')]
    assert '{:.3f} and {:.3f} above a network from scratch'.format(*above) in text
    for method, name in (('BN+S&P', 'shrink and perturb'), ('BN+ReDo', 'ReDo is')):
        above = relative(plain, FULL, method, baseline='psBN')[2]
        assert f'{method} is {above} above psBN in the plain network' in text
        means = '{:+.3f}, {:+.3f} and {:+.3f}'.format(
            *(
                relative(plain, one, method, baseline='psBN')[0]
                for one in (FULL, HALF, LOW)
            )
        )
        assert f'{name} {means}' in page
    above = relative(plain, HALF, 'BN+ReDo', baseline='psBN')[2]
    assert f'at lr 0.4 it is {above} above' in text
    mean, margin, _ = relative(plain, LOW, 'BN+ReDo', baseline='psBN')
    assert abs(mean) < margin
    residual = networks['cifar10-residual']
    mean, margin, _ = relative(residual, FULL, 'psBN', baseline='BN+ReDo')
    assert f"its mean is {mean:.3f} below psBN's (not significant)" in text
    assert margin > mean
    mean, margin, _ = relative(residual, FULL, 'BN+S&P', baseline='psBN')
    assert abs(mean) < margin
    mean, margin, _ = relative(
        networks['digits-plain'], FULL, 'psBN', baseline='BN+S&P'
    )
    assert f'{mean:.3f} below psBN with digits' in text and mean > margin
    above = relative(plain, LOW, 'psBN', baseline='BN+S&P')[2]
    assert f'at lr 0.2 it is {above} below psBN' in text
    for method in ('MimicNorm', 'GN'):
        above = relative(plain, LOW, 'BN', baseline=method)[2]
        assert f"{above} above {method}'s" in text
    above = relative(residual, FULL, 'psBN', baseline='MimicNorm')[2]
    assert f"psBN's is {above} above MimicNorm's" in text
    ranks = [
        np.mean(plain.window(setting, 'MimicNorm', 'rank', 150))
        for setting in (FULL, HALF, LOW)
    ]
    assert f'falls to {min(ranks):.1f} to {max(ranks):.1f} in the plain' in text
    ranks = [np.mean(plain.window(one, 'BN', 'rank', 150)) for one in (FULL, HALF, LOW)]
    assert f"(BN's to {min(ranks):.1f} to {max(ranks):.1f})" in text
    bn, psbn = (
        '{:.1f}, {:.1f} and {:.1f}'.format(
            *(
                np.mean(own.window(FULL, method, 'rank', 150))
                for own in networks.values()
            )
        )
        for method in ('BN', 'psBN')
    )
    assert f"BN's ends at {bn}, and psBN's at {psbn}." in text
    gains, dead = [], []
    for own, settings in ((plain, (FULL, HALF, LOW)), (residual, (FULL,))):
        for setting, method in product(settings, ('BN', 'psBN')):
            less = setting._replace(weight_decay=1e-4)
            gain = np.subtract(
                own.window(less, method, 'accuracy', 150),
                own.window(setting, method, 'accuracy', 150),
            )
            assert np.mean(gain) > confidence_margin(gain)
            gains.append(np.mean(gain))
            if (setting, method) == (FULL, 'psBN'):
                dead += [dead_share(own, one, method, 150) for one in (less, setting)]
    assert f'by {min(gains):.3f} to {max(gains):.3f}' in text
    assert f'gain {min(gains):.2f} to {max(gains):.2f} in accuracy' in page
    assert (
        '{:.0f} instead of {:.0f} and {:.0f} instead of {:.0f} %'.format(*dead) in text
    )
    _, _, below = relative(plain, FULL, SCRATCH, baseline='psBN')
    assert f'psBN ends {below} below a network from scratch' in text


def test_sentences_on_the_formula():
    rows = [
        row
        for table in tables_of(ROUNDS_PAGE)
        if table[0][0] == 'abs(gamma / beta) at death'
        for row in table[2:]
        if row[0] == '< 0.1'
    ]
    assert len(rows) == 5 * len(ROUND_STUDIES)
    late = max(int(row[6]) for row in rows if row[1] != '31 or more')
    soon = [int(row[5]) for row in rows if row[1] in ('1', '2 to 3')]
    later = [int(row[5]) for row in rows if row[1] in ('4 to 10', '11 to 30')]
    last = [int(row[6]) for row in rows if row[1] == '31 or more']
    better = NUMERALS[sum(int(row[8]) > int(row[5]) for row in rows)]
    text = words_of(ROUNDS_PAGE)
    assert f'fits better in {better} of these {len(rows)} groups' in text
    assert f'at most {late} % recover two or more rounds later' in text
    assert f'at most one round for {min(soon)} to {max(soon)} % of them' in text
    assert f'For 4 to 30 rounds, {min(later)} to {max(later)} % do' in text
    few = next(row[2] for row in rows if int(row[6]) == max(last))
    span = f'{min(last)} to {max(last)} % (the latter of {few} channels)'
    assert f'Beyond 30 rounds, {span} recover two or more rounds later' in text


def test_sentences_on_detectors():
    page = 'benchmarks/detector_rounds/README.md'
    text, retraining = words_of(page), words_of('docs/retraining.md')
    frozen_dead, default_dead, default_map = [], [], []
    for study in detector_studies.make_studies(find_lrs()):
        own = Series(
            DetectorResults(folder_of(detector_rounds), study).rounds,
            (*detector_studies.REFERENCES, *detector_studies.METHODS),
        )
        settings = [
            detector_studies.Setting(place, detector_studies.USUAL_LR)
            for place in detector_studies.PLACEMENTS
        ]
        for setting, measure in product(settings, ('dead', 'dead_by_parameters')):
            for method in ('BN', 'psBN'):
                assert not any(own.window(setting, method, measure, 40, window=40))

        def relative(method, end):
            return [
                own.window(one, method, 'mAP', end, detector_studies.RESTART)
                for one in settings
            ]

        bn, begin, psbn = relative('BN', 40), relative('BN', 10), relative('psBN', 40)
        assert {len(values) for values in bn + psbn} == {3}
        both = ' and '.join(tables.format_mean(values, 3, '+') for values in bn)
        name = detector_report.TITLES[study.name]
        assert f'{both} in rounds 31 to 40' in text
        assert f'{both} with {name}' in retraining
        significant = [abs(np.mean(one)) > confidence_margin(one) for one in bn]
        assert significant == [name == 'Faster R-CNN', name == 'RetinaNet']
        both = ' and '.join(tables.format_mean(values, 3, '+') for values in begin)
        assert f'{both} in rounds 1 to 10' in text
        changes = [
            [
                own.window(one, 'FrozenBN', 'dead', end)
                for end in (40, detector_report.WINDOW)
            ]
            for one in settings
        ]
        assert {len(end) for end, _ in changes} == {3}
        both = ' and '.join(
            tables.format_mean(list(100 * np.subtract(*one)), 1, '+') for one in changes
        )
        assert f'{both} percentage points with {name}' in text or (
            f'{both} with {name}, where ' in text
        )
        frozen_dead += [100 * np.mean(end) for end, _ in changes]
        less = [own.window(one, 'FrozenBN', 'mAP', 40, 'BN') for one in settings]
        both = ' and '.join(tables.format_mean(values, 3, '+') for values in less)
        assert f'{both} with {name}' in text
        assert all(abs(np.mean(one)) < confidence_margin(one) for one in less)
        early = [
            own.window(settings[1], 'FrozenBN', 'mAP', end, 'BN') for end in (10, 20)
        ]
        first, second = (tables.format_mean(one, 3, '+') for one in early)
        words = f'is {first} in rounds 1 to 10 and {second} in rounds 11 to 20'
        assert (words in text) == (name == 'RetinaNet')
        clear = [abs(np.mean(one)) > confidence_margin(one) for one in early]
        assert clear == 2 * [name == 'RetinaNet']
        for one in settings:
            assert not any(own.window(one, 'FrozenBN', 'dead_by_parameters', 40))
        default = settings[0]  # Norm layers in the backbone.
        change = own.change(default, 'norm_eval', 'dead', detector_report.WINDOW, 40)
        clear = abs(np.mean(change)) > confidence_margin(change)
        assert clear == (name == 'Faster R-CNN')
        change = tables.format_mean(list(100 * np.array(change)), 1, '+')
        words = 'percentage points' if clear else '(not significant)'
        assert f'{change} {words} with {name}' in text
        default_dead.append(100 * np.mean(own.window(default, 'norm_eval', 'dead', 40)))
        own_map = own.window(default, 'norm_eval', 'mAP', 40, 'BN')
        assert len(own_map) == 3
        assert abs(np.mean(own_map)) < confidence_margin(own_map)
        default_map.append(tables.format_mean(own_map, 3, '+'))
        by_parameters = own.window(default, 'norm_eval', 'dead_by_parameters', 40)
        assert np.mean(by_parameters) < 0.001
        random = relative(detector_studies.SCRATCH, 40)
        assert {len(values) for values in random} == {3}
        both = ' and '.join(tables.format_mean(values, 3, '+') for values in random)
        assert f'andom weights have {both} there' in text
        above = [
            tables.format_mean(
                own.window(one, 'BN', 'mAP', 40, detector_studies.SCRATCH), 3
            )
            for one in settings
        ]
        assert f'above them by {above[0]} and {above[1]}' in text
        found = own.compare(study.settings, 'mAP', detector_report.AT)
        assert not any(one.p < 0.05 for one in found)
        usual = [abs(one.paired.mean) for one in found if one.setting in settings]
        assert f'{max(usual):.3f} with {name}' in text
        restart = [
            np.mean(own.window(settings[0], detector_studies.RESTART, 'mAP', end))
            for end in detector_report.AT
        ]
        learned = f'has a mAP of {min(restart):.2f} to {max(restart):.2f} when it is'
        assert (learned in text) == (name == 'RetinaNet')
        largest = 0.0
        for low in (one for one in study.settings if one not in settings):
            usual = low._replace(lr=detector_studies.USUAL_LR)
            for measure, method in product(
                ('dead', 'dead_by_parameters'), ('BN', 'psBN')
            ):
                assert not any(own.window(low, method, measure, 40, window=40))
            minus = [
                own.window(low, 'BN', 'mAP', end, detector_studies.RESTART)
                for end in (10, 40)
            ]
            assert {len(values) for values in minus} == {3}
            clear = [abs(np.mean(one)) > confidence_margin(one) for one in minus]
            assert clear == [low.lr == 0.02, False]
            first, last = (tables.format_mean(values, 3, '+') for values in minus)
            words = f'{first} in rounds 1 to 10 and {last} in rounds 31 to 40'
            assert f'{words} at {low.lr:g}' in text
            assert f'{last} at {low.lr:g}' in retraining
            if low.lr == 0.02:
                fewer, ends, less, lower = {}, {}, {}, {}
                for method in FIXED:
                    change = own.change(low, method, 'dead', WINDOW, 40)
                    clear = abs(np.mean(change)) > confidence_margin(change)
                    assert clear == (method == 'FrozenBN')
                    change = list(100 * np.array(change))
                    fewer[method] = tables.format_mean(change, 1, '+')
                    dead = own.window(low, method, 'dead', 40)
                    ends[method] = f'{100 * np.mean(dead):.1f} %'
                    minus = own.window(low, method, 'mAP', 40, 'BN')
                    less[method] = tables.format_mean(minus, 3, '+')
                    assert abs(np.mean(minus)) < confidence_margin(minus)
                    saved = np.subtract(own.window(usual, method, 'dead', 40), dead)
                    saved = list(100 * saved)
                    lower[method] = tables.format_mean(saved, 1)
                    clear = abs(np.mean(saved)) > confidence_margin(saved)
                    assert clear == (method == 'norm_eval')
                assert (
                    f'changes by {fewer["norm_eval"]} (not significant) with '
                    f'norm_eval, to {ends["norm_eval"]} at the end, and by '
                    f'{fewer["FrozenBN"]} with frozen BN, to {ends["FrozenBN"]}.'
                ) in text
                assert (
                    f'lower than at 0.04 by {lower["norm_eval"]} with norm_eval, and '
                    f'by {lower["FrozenBN"]} (not significant) with frozen BN'
                ) in text
                assert f'(Faster R-CNN), {ends["norm_eval"]} were' in retraining
                both = f'{less["norm_eval"]} and {less["FrozenBN"]}'
                assert f'Their mAP minus that of BN is then {both}' in text
            psbn = own.window(low, 'psBN', 'mAP', 40, detector_studies.RESTART)
            ends = f'psBN minus a restart is {tables.format_mean(psbn, 3, "+")}'
            assert (ends in text) == (low.lr == 0.02)
            for method in ('BN', detector_studies.RESTART):
                changes = [
                    np.subtract(
                        own.window(low, method, 'mAP', end),
                        own.window(usual, method, 'mAP', end),
                    )
                    for end in detector_report.AT
                ]
                formatted = '{}, {} and {}'.format(
                    *(tables.format_mean(list(one), 3, '+') for one in changes)
                )
                assert formatted in text, (method, low.lr, formatted)
                clear = [abs(np.mean(one)) > confidence_margin(one) for one in changes]
                assert clear == [False, (method, low.lr) == ('BN', 0.01), False]
            differences = [abs(one.paired.mean) for one in found if one.setting == low]
            largest = max(largest, *differences)
        lower = f'there either (at most {largest:.3f})'
        assert (lower in text) == (name == 'Faster R-CNN')
    assert 'to {:.1f} and {:.1f} %.'.format(*default_dead) in text
    both = '{} with Faster R-CNN and {} with RetinaNet'.format(*default_map)
    assert f'Its mAP minus that of BN is then {both}' in text
    span = f'{min(default_dead):.0f} to {max(default_dead):.0f} %'
    assert f'{span} were dead at the end' in retraining
    *_, backbone, everywhere = frozen_dead  # Of RetinaNet, the last one.
    assert f'where {backbone:.1f} and {everywhere:.1f} % are dead at the end' in text
    most = f'{max(frozen_dead + default_dead):.0f} %'
    words = f'up to {most} did on average with fixed statistics'
    assert words in words_of('README.md')


def test_sentences_on_the_decay_of_rounds():
    of_detectors = detector_studies.ROUNDS * decay_of(
        detector_studies.USUAL_LR, detector_report.WEIGHT_DECAY, detector_report.STEPS
    )
    classifier = f'{decay_of(*FULL, 108):.2f}'  # Steps of a round of CIFAR-10.
    assert f'One round of CIFAR-10 has D = {classifier} at lr 0.8' in words_of(
        ROUNDS_PAGE
    )
    assert (
        f'a round on CIFAR-10 at lr 0.8 has {classifier}, but all '
        f'{detector_studies.ROUNDS} rounds of our detectors have {of_detectors:.2f}'
        in words_of('docs/retraining.md')
    )


def test_sentences_on_the_pilot_of_detectors():
    text = words_of('benchmarks/detector_rounds/README.md')
    dead, learned, above = [], [], []
    for place in PLACES:
        results = DetectorResults(PILOT, detector_studies.Study(place.detector, ()))
        scores = mean_scores(results, place.placement)
        best = max(scores.values())
        for run, rows in results.rounds.items():
            if run.placement == place.placement and run.lr >= 0.16:
                dead += [row.dead for row in rows]
            elif run.placement == place.placement:
                assert not any(row.dead for row in rows)
        learned += [score / best for lr, score in scores.items() if lr >= 0.16]
        above.append(scores[0.08] / best)
    assert f'end with up to {100 * max(dead):.1f} % dead channels' in text
    assert f'is at most {max(learned):.2f} times that of the best rate' in text
    assert f'(0.08 has up to {max(above):.3f} times' in text


def test_sentences_on_pruning():
    rows = read_rows(folder_of(rounds) / pruning.FILE, Run, pruning.Size)
    sizes = {
        method: [own[0] for run, own in rows.items() if run.method == method]
        for method in ('BN', 'psBN')
    }
    (full,) = {one.parameters for own in sizes.values() for one in own}
    bn, psbn = (
        f'{min(found):,} to {max(found):,}'
        for found in ([one.remaining for one in own] for own in sizes.values())
    )
    text, page = words_of(ROUNDS_PAGE), words_of('docs/retraining.md')
    assert f'has {full:,} parameters with its BN folded' in text
    assert f'With BN, {bn} parameters remain, and with psBN {psbn} (five seeds' in text
    assert (
        f'Of the {full:,} parameters of the digits network below, {bn} remain after '
        f'150 rounds with BN, and {psbn} with psBN' in page
    )
    assert all(len(own) == 5 for own in sizes.values())
    largest = max(one.difference for own in sizes.values() for one in own)
    assert f'logits differ by {largest:.0e} at most' in text
    assert not any(one.changed for own in sizes.values() for one in own)


def test_sentences_on_pruned_detectors():
    text = words_of('benchmarks/detector_rounds/README.md')
    file = folder_of(detector_rounds) / detector_pruning.FILE
    rows = read_rows(file, detector_pruning.Detector, detector_pruning.Size)
    found = {key: size for key, (size,) in rows.items()}
    shares, at_start = [], []
    for name in detector_studies.DETECTORS:
        (full,) = {size.parameters for key, size in found.items() if key.name == name}
        spans = []
        for number in (detector_studies.ROUNDS, 0):
            own = [one for key, one in found.items() if key[:2] == (name, number)]
            assert len(own) == 3
            removed = [one.removed for one in own]
            remaining = [100 * one.remaining / full for one in own]
            spans += [
                f'{min(removed)} to {max(removed)}',
                f'{min(remaining):.1f} to {max(remaining):.1f} %',
            ]
            (shares if number else at_start).extend(remaining)
        title = detector_report.TITLES[name]
        assert (
            '{1} channels of {0} are removed, and {2} of its {5:,} parameters remain '
            '(at the start: {3} channels, {4})'.format(title, *spans, full)
            in text
        )
    pruned = [size for key, size in found.items() if key.rounds]
    same, seen, test_same, test_seen = (
        sum(getattr(one, column) for one in pruned)
        for column in ('same', 'detections', 'test_same', 'test_detections')
    )
    assert f'{same:,} of {seen:,} detections of these six detectors are the' in text
    assert f'On the test scenes, {test_same:,} of {test_seen:,} are the same' in text
    largest, elsewhere = (
        max(getattr(one, column) for one in pruned)
        for column in ('difference', 'test_difference')
    )
    assert f'raw outputs differ by {largest:.0e} of their size at most' in text
    assert f'raw outputs differ by up to {elsewhere:.3f}, because' in text
    spans = [f'{min(own):.0f} to {max(own):.0f} %' for own in (shares, at_start)]
    assert "{} of our detectors' parameters remain (before: {})".format(
        *spans
    ) in words_of('docs/retraining.md')


def sentences_on_collapse(own):
    """What the pages say of the classifiers of digits, with the numbers."""

    def both(**settings):
        """The shares of dead channels under BN and psBN."""
        return '{} and {}'.format(
            *(own.share(**settings, alpha=alpha) for alpha in (0.0, 0.1))
        )

    def networks(what, alpha):
        return '{} and {} %'.format(
            *(
                own.share(what, network=network, lr=1.6, alpha=alpha)
                for network in ('conv', 'resnet')
            )
        )

    rows = {
        name: collapse_report.make_rows(one, own.results, collapse_report.Row)
        for name, one in collapse_experiments.EXPERIMENTS.items()
    }
    pairs = {name: collapse_report.compare(found) for name, found in rows.items()}
    low = [abs(one.paired.mean) for one in pairs['lr'] if one.psbn.settings.lr <= 1.6]
    (last,) = (one for found in pairs.values() for one in found if one.p < 0.05)
    assert (last.psbn.settings.network, last.psbn.settings.lr) == ('resnet', 4)
    exponents = [
        [law.exponent for law in fit.laws]
        for fit in collapse_report.fit_all(rows['lr'], 'lr')
    ]
    means = [np.mean(found) for found in exponents]
    outside = sum(
        abs(mean - 2) > confidence_margin(found)
        for mean, found in zip(means, exponents)
    )
    adaptive = ', '.join(
        f'{both(optimizer=name, lr=0.1, **more)} % with {name}'
        for name, more in (
            ('RMSprop', {}),
            ('Adam', {}),
            ('AdamW', dict(weight_decay=0.05)),
        )
    )
    finetuned = dict(start='first half', classes='second')
    alphas = ', '.join(
        f'{own.share(lr=1.6, alpha=alpha)} % with {alpha:g}'
        for alpha in (0.01, 0.03, 0.1, 0.2, 0.5)
    )
    collapsed = dict(start='collapsed', lr=1.6)
    return [
        f'{networks("dead", 0.0)} of the channels of the two networks are dead with '
        f'BN, and {networks("dead", 0.1)} with psBN',
        f'{networks("died", 0.0)} die with BN, and {networks("died", 0.1)} with psBN',
        f'differs by {max(low):.2f} points at most',
        f'one of the {sum(map(len, pairs.values()))} differences in the tables',
        f'({np.mean(last.bn.accuracies):.1f} %) and psBN has '
        f'{np.mean(last.psbn.accuracies):.1f} %',
        f'from {min(means):.2f} to {max(means):.2f}',
        f'{outside} of the {len(means)} intervals exclude 2',
        adaptive,
        *(f'{both(lr=lr, **finetuned)} % at lr {lr:g}' for lr in (0.4, 1.6, 4.0)),
        *(
            f'{both(lr=1.6, slope=slope)} % with slope {slope:g}'
            for slope in (0.01, 0.1)
        ),
        f'{both(lr=1.6, norm_decay=0.0)} % without decay',
        f'{both(lr=1.6)} % with the usual decay',
        f'{both(lr=1.6, norm_decay=4.0)} % with four times as much',
        alphas,
        f'{both(**collapsed)} % with decay',
        f'{both(**collapsed, norm_decay=0.0)} % without it',
    ]


def test_sentences_on_collapse():
    own = Trainings(collapse_experiments.STUDY)
    found = sentences_on_collapse(own)
    text = words_of('benchmarks/collapse/README.md')
    assert [one for one in found if one not in text] == []
    assert found[0] in words_of('docs/choosing.md')
    gamma = collapse_report.make_rows(
        collapse_experiments.EXPERIMENTS['gamma'], own.results, collapse_report.Row
    )
    for fit in collapse_report.fit_all(gamma, 'gamma'):
        assert np.mean([law.exponent for law in fit.laws]) > -1.5
    for alpha in (0.0, 0.1):
        for settings in (
            dict(optimizer='Adam', lr=0.01),
            dict(optimizer='RMSprop', lr=0.01),
            dict(optimizer='AdamW', lr=0.01, weight_decay=0.05),
            dict(start='first half', classes='second', lr=0.1),
        ):
            assert own.share('died', **settings, alpha=alpha) == '0.0'


def test_sentences_on_collapse_of_cifar10():
    own = Trainings(collapse_experiments.STUDY, 'cifar10')
    experiment = collapse_experiments.CIFAR10['lr']
    rows = collapse_report.make_rows(experiment, own.results, collapse_report.Row)
    pairs = collapse_report.compare(rows)
    assert len(pairs) == 10
    text = words_of('benchmarks/collapse/README.md')
    dead = {
        network: '{} and {} %, {} and {} % and {} and {} %'.format(
            *(
                share
                for lr in (0.8, 1.6, 3.2)
                for share in own.shares(network=network, lr=lr)
            )
        )
        for network in ('conv', 'resnet')
    }
    assert (
        f'are {dead["conv"]} in the plain network, and {dead["resnet"]} in the ResNet'
        in text
    )
    low = [abs(one.paired.mean) for one in pairs if one.psbn.settings.lr <= 1.6]
    assert f'differ by {max(low):.2f} points at most' in text
    assert all(one.p > 0.05 for one in pairs)
    last = [one for one in pairs if one.psbn.settings.lr == 3.2]
    bn, psbn = (
        '{:.1f} and {:.1f} %'.format(
            *(np.mean(getattr(one, norm).accuracies) for one in last)
        )
        for norm in ('bn', 'psbn')
    )
    assert f'({bn}, and {psbn} with psBN)' in text
    fits = collapse_report.fit_all(rows, 'lr')
    whole = {
        fit.rows[0].settings.network: fit.laws
        for fit in fits
        if len(fit.rows) == 5  # The last one is that at the end.
    }
    for network, place in (('conv', 'the plain network'), ('resnet', 'the ResNet')):
        assert f'{format_exponent(whole[network])} in {place}' in text

    def excludes(laws):
        found = [law.exponent for law in laws]
        return abs(np.mean(found) - 2) > confidence_margin(found)

    assert [network for network, laws in whole.items() if excludes(laws)] == ['resnet']
    assert len(fits) == 7 and sum(excludes(fit.laws) for fit in fits) == 1
    assert 'Six of the seven intervals include 2' in text
    plain = '{} and {} %'.format(*own.shares(lr=1.6))
    assert f'has {plain} at this rate' in words_of('docs/choosing.md')


BATCH_NORMS = ('BN', 'GN', 'MimicNorm')


def best_of_ablation(own, lrs, **settings):
    """The best mean accuracies, over the learning rates."""
    found = [
        max(own.accuracy(norm=norm, lr=lr, **settings) for lr in lrs)
        for norm in ('BN', 'MimicNorm', 'weight mean', 'last BN', 'none')
    ]
    return (
        '{:.1f} % with BN, {:.1f} % with MimicNorm, {:.1f} % with weight mean, '
        '{:.1f} % with last BN and {:.1f} % with neither'.format(*found)
    )


def sentences_on_mimicnorm(own):
    """What the page says of each experiment, with the numbers."""

    def small(batch):
        """The mean accuracies with a number of images."""
        found = [own.accuracy(norm=norm, batch=batch) for norm in BATCH_NORMS]
        return 'BN has {:.1f} %, GN {:.1f} % and MimicNorm {:.1f} %'.format(*found)

    best = partial(best_of_ablation, own, mimicnorm_experiments.LRS)

    def last(measure, moment, *norms):
        """The means at the last ReLU."""
        found = [
            np.mean(
                [
                    getattr(result, f'{measure}_{moment}')[-1]
                    for result in own.of(network='conv', depth=16, lr=0.05, norm=norm)
                    if getattr(result, f'{measure}_{moment}')
                ]
            )
            for norm in norms
        ]
        return [f'{value:.2f}' for value in found]

    norms = ('MimicNorm', 'BN', 'none')
    together = '{} with MimicNorm, {} with BN and {} with neither'
    return [
        f'The best mean accuracy is {best(depth=32)} in the plain network of depth 32',
        f'and {best(network="resnet", depth=19)} in the ResNet of depth 19',
        f'With one image at a time, {small(1)}; with two, {small(2)}; with four, '
        f'{small(4)}',
        together.format(*last('channels', 'before', *norms)),
        '{}, {} and {}'.format(*last('images', 'before', *norms)),
        'After training, the correlations are {}, {} and {}, and the cosines are '
        '{}, {} and {}'.format(
            *last('channels', 'after', *norms), *last('images', 'after', *norms)
        ),
    ]


def test_sentences_on_mimicnorm():
    own = Trainings(mimicnorm_experiments.STUDY)
    found = sentences_on_mimicnorm(own)
    text = words_of('benchmarks/mimicnorm/README.md')
    assert [one for one in found if one not in text] == []
    assert found[2].partition('; with four')[0] in words_of('docs/choosing.md')


def test_sentences_on_mimicnorm_of_cifar10():
    own = Trainings(mimicnorm_experiments.STUDY, 'cifar10')
    lrs = 0.02, 0.1, 0.4
    plain = dict(depth=8, batch=128)
    resnet = dict(network='resnet', depth=7, batch=128)
    text = words_of('benchmarks/mimicnorm/README.md')
    best = [best_of_ablation(own, lrs, **network) for network in (plain, resnet)]
    sentence = 'is {} in the plain network of depth 8, and {} in the ResNet of depth 7.'
    assert sentence.format(*best) in text
    for network, name in (
        (plain, 'plain network of depth 8'),
        (resnet, 'ResNet of depth 7'),
    ):
        mimic, bn, neither = (
            [own.accuracy(norm=norm, lr=lr, **network) for lr in lrs]
            for norm in ('MimicNorm', 'BN', 'none')
        )
        above = np.subtract(mimic, bn)
        assert above[0] == max(above) and min(above) > 0, name
        row = '{}, CIFAR-10, best rate | {:.2f} | {:.2f} | {:.2f} |'
        assert row.format(name, max(bn), max(mimic), max(neither)) in text
        if network is plain:
            assert f'{mimic[0]:.1f} and {bn[0]:.1f} % at lr 0.02 in the plain' in text
    found = [
        one.accuracy >= 0.2
        for network in (plain, resnet)
        for norm in ('none', 'weight mean')
        for one in own.of(norm=norm, lr=0.4, **network)
    ]
    assert f'{sum(found)} of {len(found)} trainings succeeds at lr 0.4' in text


PAGE = 'benchmarks/README.md'
CPU, H200 = 'CPU, 2 threads', 'NVIDIA H200'
ROWS = {'nothing': 'none', memory.PUBLISHED: memory.PUBLISHED}
DETECTORS = {'Faster R-CNN R50-FPN': 'Faster R-CNN', 'RetinaNet R50-FPN': 'RetinaNet'}


def costs_of(benchmark):
    """What a benchmark of costs has measured, by what was measured."""
    name = benchmark.__name__.rpartition('.')[2]
    file = ROOT / 'benchmarks' / f'{name}.csv'
    return Costs(file, benchmark.Measured, benchmark.Cost).all()


@pytest.fixture(scope='module')
def costs():
    """The cost of each norm by device and network, at full size."""
    found = {}
    for one, cost in costs_of(memory).items():
        found.setdefault((one.device, one.network), {})[one.norm] = cost
    return found


def stored(own, name):
    """A cell of a table of stored activations."""
    norm = ROWS.get(name) or re.match(r'\w+', name)[0]
    saved, of_bn = own[norm].saved, own[norm].saved / own['BN'].saved
    return f'{saved:.0f}' if norm == 'BN' else f'{saved:.0f} ({of_bn:.2f})'


@pytest.mark.parametrize('page', [PAGE, 'docs/choosing.md'])
def test_stored_activations(costs, page):
    networks = list(memory.BACKBONES)
    table = table_with(page, '', *networks)
    for name, *cells in table[: 3 if page == PAGE else 2]:
        for network, cell in zip(networks, cells, strict=True):
            own = costs[CPU, network]
            assert cell == stored(own, name), (name, network)
            for norm in ('psBN', 'GN', 'BN, frozen'):
                assert abs(own[norm].saved - own['BN'].saved) <= 1


def test_times_of_backbones(costs):
    networks = list(memory.BACKBONES)
    for name, *cells in table_with(PAGE, 'step, inference', *networks):
        for network, cell in zip(networks, cells, strict=True):
            own = costs[CPU, network][ROWS.get(name, name)]
            assert cell == f'{own.step:.2f}, {own.inference:.2f}', (name, network)
    limits = [f'{costs[CPU, one]["MimicNorm"].step_of_none:.2f}' for one in networks]
    text = words_of(PAGE)
    assert limits[0] == limits[2]
    assert f'takes {limits[0]} (ResNet-18, ResNet-101), {limits[1]} (ResNet-50)' in text
    assert f'and {limits[3]} (MobileNetV2) times' in text


def test_costs_of_detectors(costs):
    bn, mimic, psbn, time = table_with(PAGE, '', 'Faster R-CNN', 'RetinaNet')
    for column, network in enumerate(('Faster R-CNN', 'RetinaNet'), 1):
        own = costs[CPU, network]
        assert bn[column] == stored(own, 'BN')
        for norm in ('psBN', 'GN', 'BN, frozen'):
            assert abs(own[norm].saved - own['BN'].saved) <= 1
        assert mimic[column] == stored(own, 'MimicNorm')
        assert psbn[column] == f'{own["psBN"].step:.2f}'
        assert time[column] == f'{own["MimicNorm"].step:.2f}'


def test_costs_on_a_gpu(costs):
    network = None
    for name, *cells in table_with(PAGE, '', 'stored, MiB', 'peak, MiB'):
        *head, name = name.split(': ')
        network = DETECTORS.get(head[0], head[0]) if head else network
        own = costs[H200, network]
        cost = own[ROWS.get(name, name)]
        ratios = cost.peak / own['BN'].peak, cost.step, cost.inference
        expected = [
            f'{cost.saved:.0f}',
            f'{cost.peak:.0f}',
            *map('{:.2f}'.format, ratios),
        ]
        assert cells == expected, (network, name)
    for name, *cells in table_with('docs/choosing.md', '', 'peak memory')[1:]:
        network = DETECTORS.get(name, 'ResNet-50')
        own = costs[H200, network]['MimicNorm']
        peak = own.peak / costs[H200, network]['BN'].peak
        assert cells == [f'{peak:.2f}', f'{own.step:.2f}', f'{own.inference:.2f}']
    peaks = [
        costs[H200, network]['MimicNorm'].peak / costs[H200, network]['BN'].peak
        for network in DETECTORS.values()
    ]
    front = words_of('README.md')
    assert 'need {:.2f} and {:.2f} of'.format(*peaks) in front
    assert 'need {:.2f} to {:.2f} of'.format(*peaks) in front
    faster, retina = (
        [
            costs[H200, network][norm].saved - costs[H200, 'ResNet-50'][norm].saved
            for norm in ('BN', 'MimicNorm')
        ]
        for network in DETECTORS.values()
    )
    assert abs(faster[1] - faster[0]) <= 2
    more = f'(RetinaNet: {retina[1] - retina[0]:.0f} MiB more)'
    assert more in words_of('docs/choosing.md')


def test_costs_on_an_h100():
    table = gpu_page.read_tables(folder_of(gpu))
    bn, mimic = (table['Memory'][norm] for norm in ('BN', 'MimicNorm'))
    peak = int(mimic['peak, MiB']) / int(bn['peak, MiB'])
    step, inference = (
        float(table['Time'][f'{action} | float32 | 256']['MimicNorm / BN'])
        for action in ('training step', 'inference')
    )
    (name, *cells) = table_with('docs/choosing.md', '', 'peak memory')[0]
    assert name == 'ResNet-50, 256 images of 224 x 224, float32 (H100)'
    assert cells == [f'{value:.2f}' for value in (peak, step, inference)]
    largest = mimic['largest batch'], bn['largest batch']
    text = words_of('docs/choosing.md')
    assert "batch on the H100 is {} images, BN's {}".format(*largest) in text
    steps, inferences = (
        {
            name.rpartition(' ')[2]: float(own['MimicNorm / BN'])
            for name, own in table['Time'].items()
            if name.startswith(f'{action} | bfloat16 autocast')
        }
        for action in ('training step', 'inference')
    )
    slowest, fastest = max(steps, key=steps.get), min(steps, key=steps.get)
    assert (
        f'step takes {steps[fastest]:.2f} ({fastest} images) to {steps[slowest]:.2f} '
        f'({slowest} images), its inference up to {max(inferences.values()):.2f}'
    ) in text
    assert f'a ResNet-50 alone (H100) {peak:.2f}.' in words_of('README.md')
    for own in table['Time'].values():
        assert abs(float(own['psBN / BN']) - 1) < 0.02


def test_steps_of_optimizers():
    found = {tuple(one): cost for one, cost in costs_of(optimizer_step).items()}
    for norm, *cells in table_with(PAGE, '', 'optimizer step, ms'):
        own = found[CPU, norm]
        expected = [own.step, own.more, own.around]
        assert cells == [f'{value:.2f}' for value in expected], norm
    more = {norm: found[H200, norm].more for norm in ('psBN', 'MimicNorm')}
    text = words_of(PAGE)
    assert (
        f'take {found[H200, "BN"].step:.2f} ms with BN, {more["psBN"]:.2f} ms' in text
    )
    assert f'{more["MimicNorm"]:.2f} ms more with MimicNorm' in text


def test_times_of_inference():
    found = {one.config: cost for one, cost in costs_of(inference).items()}
    table = table_with(PAGE, 'Config', 'as trained, ms')
    assert [config for config, *_ in table] == list(found)
    low, high = (choose(cost.onnx for cost in found.values()) for choose in (min, max))
    assert f'{low:.2f} to {high:.2f} of the time' in words_of('docs/deployment.md')
    for config, *cells in table:
        own = found[config]
        expected = [f'{own.trained:.0f}', f'{own.folded:.2f}', f'{own.onnx:.2f}']
        assert cells == expected, config


def test_the_cost_of_watching_channels():
    faster, retina = costs_of(collapse_watch).values()
    text = words_of(PAGE)
    assert f'{faster.step:.2f} (Faster R-CNN) and {retina.step:.2f} (RetinaNet)' in text
    share = 100 * (max(faster.training, retina.training) - 1)
    assert f'costs {share:.1f} %' in text
    options = inspect.signature(FilterCollapseHook).parameters
    every, watched = (options[name].default for name in ('interval', 'sample'))
    assert f'Of every {every} steps it watches {watched}' in text


def test_filters_of_an_imagenet_network():
    counts = Counter()
    for data in ('coco128', 'neu_det'):
        file = ROOT / 'benchmarks' / 'imagenet_filters' / f'{data}.csv'
        for row in csv.DictReader(file.open()):
            if row['judged'] == '1':
                stage = row['layer'].split('.')[1]
                for key in (stage, 'all'):
                    counts[key, 'closed', data] += int(row['rarely_positive'])
                    counts[key, 'dead', data] += int(row['dead'])
                    counts[key, 'channels', data] += int(row['channels'])
    for name, *cells in table_with(PAGE, 'Stage', 'Channels before a ReLU6'):
        stage = name.strip('`')
        channels = counts[stage, 'channels', 'coco128']
        assert cells[0] == f'{channels:,}'
        kinds = ('closed', 'coco128'), ('dead', 'coco128'), ('dead', 'neu_det')
        for cell, kind in zip(cells[1:], kinds, strict=True):
            found = counts[(stage, *kind)]
            assert cell == f'{found} ({100 * found / channels:.1f} %)', (stage, kind)
