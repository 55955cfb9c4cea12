"""What the report of a comparison concludes from the scores of its runs."""

import json
import re

import matplotlib.image
import pytest
from helpers import comparison
from matplotlib.figure import Figure
from scipy import stats

from mmpsbn.analysis.style import COLOR_OF
from mmpsbn.compare import NORMALIZATIONS, Run, TrainingCost, write_report
from mmpsbn.compare.figures import draw_curves, draw_lrs
from mmpsbn.compare.report import Row, compare_with_baseline, describe_results
from mmpsbn.statistics.intervals import (
    compare_paired,
    confidence_margin,
    correct_p_values,
)
from mmpsbn.statistics.tables import format_mean


def row(norm, *scores, lr=0.1, length=1, seeds=None, diverged=0):
    runs = [Run(norm, lr, seed, length) for seed in seeds or range(len(scores))]
    return Row(
        norm, lr, runs, runs[diverged:], list(scores), list(scores), [], [], length
    )


BN = row('BN', 0.50, 0.54, 0.52)


def test_interval_by_hand():
    # The standard error of .50, .54, .52 is .02 / sqrt(3), and the quantile
    # of Student's t with two degrees of freedom is 4.3027.
    assert confidence_margin([0.50, 0.54, 0.52]) == pytest.approx(
        4.3027 * 0.0115470, 1e-4
    )
    assert format_mean([0.50, 0.54, 0.52]) == ['0.520', '0.470 to 0.570']
    assert format_mean([0.5]) == ['0.500', '-']
    assert format_mean([]) == ['-', '-']


def test_paired_difference_by_hand():
    # Differences .01, .02, .03: mean .02, standard error .0057735, t 3.4641.
    found = compare_paired([0.51, 0.56, 0.55], [0.50, 0.54, 0.52])
    assert found.seeds == 3
    assert found[1:4] == pytest.approx((0.02, -0.0048414, 0.0448414), abs=1e-6)
    assert found.p == pytest.approx(2 * stats.t.sf(3.4641016, 2))


def test_paired_differences_without_an_interval():
    assert compare_paired([0.5], [0.4])[:1] + compare_paired([0.5], [0.4])[2:] == (
        1,
        None,
        None,
        None,
    )
    assert compare_paired([], []) == (0, None, None, None, None)
    assert compare_paired([0, 0], [0, 0]) == (2, 0, 0, 0, 1)


def test_equal_differences_are_not_significant():
    # mAP has three digits, so two seeds can have the same difference.
    found = compare_paired([0.504, 0.516], [0.5, 0.512])
    assert found == (2, pytest.approx(0.004), None, None, None)
    assert describe_results([row('BN', 0.25, 0.35), row('GN', 0.26, 0.36)], 'BN') == (
        'GN has no confidence interval, because every seed has the same difference '
        'to BN.'
    )


def test_holm_by_hand():
    # .01 * 3, .03 * 2 and .04 * 1, of which the last may not be below.
    assert correct_p_values([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert correct_p_values([0.6, 0.7]) == [1, 1]
    assert correct_p_values([]) == []


def test_differences_are_of_common_seeds():
    (one,) = compare_with_baseline([BN, row('psBN', 0.53, 0.56, seeds=(2, 1))], 'BN')
    assert one.paired.seeds == 2
    assert one.paired.mean == pytest.approx(0.015)
    assert compare_with_baseline([row('psBN', 0.5, 0.6)], 'BN') == []


def test_each_length_is_a_family_of_its_own():
    rows = [
        BN,
        row('GN', 0.51, 0.56, 0.55),
        row('BN', 0.6, 0.6, 0.6, length=2),
        row('GN', 0.61, 0.62, 0.63, length=2),
        row('psBN', 0.6, 0.62, 0.61, length=2),
    ]
    short, *long = compare_with_baseline(rows, 'BN')
    assert short.p == short.paired.p
    assert [one.p for one in long] == pytest.approx(
        correct_p_values([one.paired.p for one in long])
    )
    assert long[0].p == pytest.approx(2 * long[0].paired.p)
    text = describe_results(rows, 'BN')
    assert text.startswith('At 1 x the schedule, GN is not significantly ')
    assert '. At 2 x the schedule, ' in text


def test_the_first_sentence_follows_from_the_differences():
    text = describe_results(
        [
            BN,
            row('GN', 0.41, 0.442, 0.43),
            row('psBN', 0.51, 0.56, 0.50),
            row('MimicNorm', 0.601, 0.642, 0.62),
        ],
        'BN',
    )
    assert text == (
        '**MimicNorm** is 0.101 mAP above BN (95 % CI 0.099 to 0.103, 3 '
        'seeds, p < 0.001); **GN** is 0.093 mAP below BN (95 % CI 0.081 to '
        '0.104, 3 seeds, p = 0.002); psBN is not significantly different '
        'from BN.'
    )
    assert describe_results(
        [BN, row('psBN', 0.9, 0.1, 0.5), row('GN', 0.5, 0.55, 0.52)], 'BN'
    ) == ('psBN and GN are not significantly different from BN.')


def test_a_correction_makes_a_difference_insignificant():
    # p is 0.034 alone, and 0.067 as the smaller of two.
    near = row('psBN', 0.52, 0.58, 0.55)
    assert 'psBN** is 0.030 mAP above BN' in describe_results([BN, near], 'BN')
    assert 'psBN and GN are not significantly' in describe_results(
        [BN, near, row('GN', 0.5, 0.55, 0.52)], 'BN'
    )


def test_one_seed_has_no_interval():
    assert describe_results([row('BN', 0.5), row('psBN', 0.9)], 'BN') == (
        'psBN has no confidence interval, because fewer than two seeds are '
        'common with BN.'
    )


def test_without_results():
    assert 'No run detected anything' in describe_results(
        [row('BN', 0.0, 0.0), row('GN', 0.0, 0.0)], 'BN'
    )
    assert 'because the baseline BN has no result' in describe_results(
        [row('GN', 0.5, 0.6)], 'BN'
    )
    assert describe_results([BN], 'BN').startswith('BN has a mean mAP of 0.520')


def test_diverged_runs_are_counted():
    text = describe_results([BN, row('psBN', 0.0, 0.54, 0.52, diverged=1)], 'BN')
    assert text.endswith('Runs that diverged count as mAP 0 (psBN 1 of 3).')


def test_unequal_trials_are_reported():
    assert 'The numbers of seeds differ (BN 3, psBN 2)' in describe_results(
        [BN, row('psBN', 0.5, 0.6)], 'BN'
    )
    longer = [row('BN', 0.6, length=2), row('psBN', 0.6, length=2)]
    even = [BN, row('psBN', 0.5, 0.6, 0.5), *longer]
    assert 'seeds differ' not in describe_results(even, 'BN')
    assert 'seeds differ at 1 x the schedule (BN 3, psBN 2)' in describe_results(
        [BN, row('psBN', 0.5, 0.6), *longer], 'BN'
    )
    assert 'The learning rates differ (BN 0.1, 0.2; psBN 0.1)' in describe_results(
        [BN, row('BN', 0.7, 0.71, 0.7, lr=0.2), row('psBN', 0.6, 0.6, 0.6)], 'BN'
    )


def test_what_is_said_of_the_selection_of_learning_rates():
    tried = [
        row('BN', 0.5, lr=0.01),
        row('BN', 0.6, lr=0.02),
        row('BN', 0.5, lr=0.04),
        row('GN', 0.5, lr=0.01),
        row('GN', 0.4, lr=0.02),
        row('GN', 0.3, lr=0.04),
    ]
    optimistic, narrow = 'which makes the results optimistic', 'too narrow'
    text = describe_results(tried, 'BN')
    assert optimistic in text
    assert '--lrs (GN 0.01): the range may be too narrow' in text
    # Chosen on other images, and from the same rates.
    final = [row('BN', 0.5, 0.6, lr=0.02), row('GN', 0.5, 0.6, lr=0.01)]
    text = describe_results(final, 'BN', tried)
    assert optimistic not in text and 'rates differ' not in text
    assert '--lrs (GN 0.01): the range may be too narrow' in text
    text = describe_results([BN], 'BN')
    assert optimistic not in text and narrow not in text


def test_a_report_of_several_lengths(digits, tmp_path):
    plan = comparison(digits, tmp_path, seeds=(0, 1, 2), lengths=(1, 2))
    for run in plan.runs:
        plan.folder(run).mkdir()
        score = (
            {'BN': 0.5, 'psBN': 0.51}[run.norm]
            + 0.1 * run.length
            + (0.001 * run.seed * (run.norm == 'BN'))
        )
        (plan.folder(run) / 'result.json').write_text(
            json.dumps(
                dict(metrics={'coco/bbox_mAP': score}, seconds=1.0, diverged=False)
            )
        )
    cost = TrainingCost(1.0, 1.0, 1.0, 1.0, None, 8)
    write_report(plan, dict(BN=cost, psBN=cost), 'command')
    report = (tmp_path / 'report.md').read_text()
    # Differences .010, .009, .008: the margin is 4.3027 * .001 / sqrt(3).
    for length in (1, 2):
        assert (
            f'| psBN | {length} x | 3 | +0.009 | 0.007 to 0.011 | 0.004 |'
        ) in report
    assert 'At 2 x the schedule, **psBN** is 0.009 mAP above BN' in report
    assert re.search(
        r'^\| BN \| 2 x \| 0.04 \| 3 \| 0.701 \| 0.699 to 0.703', report, re.M
    )


@pytest.mark.parametrize('evaluations', (1, 2))
def test_curves_of_a_single_evaluation_are_not_drawn(digits, tmp_path, evaluations):
    plan = comparison(digits, tmp_path)
    for run in plan.runs:
        scalars = plan.folder(run) / 'now' / 'vis_data' / 'scalars.json'
        scalars.parent.mkdir(parents=True)
        scalars.write_text(
            ''.join(
                json.dumps({'coco/bbox_mAP': 0.5, 'step': step}) + '\n'
                for step in range(evaluations)
            )
        )
        (plan.folder(run) / 'result.json').write_text(
            json.dumps(dict(metrics={'coco/bbox_mAP': 0.5}, seconds=1.0))
        )
    cost = TrainingCost(1.0, 1.0, 1.0, 1.0, None, 8)
    write_report(plan, dict(BN=cost, psBN=cost), 'command')
    assert (tmp_path / 'curves.png').exists() == (evaluations > 1)


@pytest.fixture
def figure(monkeypatch):
    """A list that gets the figure that is drawn, which is not written."""
    found = []
    monkeypatch.setattr(Figure, 'savefig', lambda own, *_, **__: found.append(own))
    return found


def test_every_method_has_its_own_color():
    assert COLOR_OF.keys() >= {*NORMALIZATIONS}
    colors = [color for name, color in COLOR_OF.items() if name != 'restart']
    assert len({*colors}) == len(colors)


def test_only_shares_are_drawn_from_zero(figure):
    labels = dict(xlabel='epoch', ylabel='y')
    for limit in ({}, dict(bottom=0)):
        draw_curves({'BN': [{1: 0.4, 2: 0.44}]}, '', **labels, **limit)
    found = [own.axes[0].get_ylim()[0] for own in figure]
    assert found[0] > 0.39 and found[1] == 0


def test_learning_rates_have_confidence_intervals(figure):
    draw_lrs({'': [BN, row('BN', 0.4, lr=0.2)]}, '', 'NEU-DET')
    (own,) = figure
    (interval, single) = own.axes[0].collections[0].get_segments()
    margin = confidence_margin(BN.scores)
    assert interval[:, 1] == pytest.approx([0.52 - margin, 0.52 + margin])
    assert single[0, 1] == single[1, 1]
    assert own.get_suptitle() == 'NEU-DET' and own.axes[0].get_ylim()[0] > 0.35


def test_learning_curves_have_confidence_bands(tmp_path):

    def colored(*lines):
        file = tmp_path / 'curves.png'
        draw_curves({'BN': lines}, str(file), xlabel='epoch', ylabel='mAP')
        return (matplotlib.image.imread(file)[..., :3].std(-1) > 0.01).sum()

    one = {1: 0.1, 2: 0.5}
    assert colored(one, {1: 0.1, 2: 0.6}) > 2 * colored(one)
    # The range of four is the same as of two, and its interval narrower.
    assert colored(one, one, {1: 0.1, 2: 0.6}, {1: 0.1, 2: 0.6}) < colored(
        one, {1: 0.1, 2: 0.6}
    )
