"""Tables and figures of the studies, from their CSV files alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.rounds.figures import Panels, draw_rounds
from benchmarks.rounds.training import decay_of
from benchmarks.shared.pages import write_sections
from benchmarks.shared.series import (
    WINDOW,
    Comparison,
    Series,
    count_significant,
    difference_table,
    rounds_up_to,
)
from benchmarks.shared.tables import format_mean
from mmpsbn.statistics.tables import format_table

from .results import Results
from .studies import METHODS, REFERENCES, RESTART, ROUNDS, SEEDS, Setting
from .tasks import STEPS

AT = (10, 20, 40)
ACCUMULATED = 1.0  # Percentage points.
JUDGES = dict(dead='on images', dead_by_parameters='by parameters')
DRAWN = 4  # Rounds of a point in the figure.
WEIGHT_DECAY = 1e-4
TITLES = {'faster-rcnn': 'Faster R-CNN', 'retinanet': 'RetinaNet'}
PANELS = Panels(
    {
        'mAP': ('mAP minus\nthat of a restart', None),
        'dead': ('dead on\nimages, %', (0, None)),
    },
    frozenset(['dead']),
    RESTART,
    'restart',
    METHODS,
    lambda setting: setting.name,
)
COLUMNS = {'Norm layers': lambda setting: setting.name}


def write_report(results: Sequence[Results], folder: Path) -> Path:
    """Write the page and its figures into a folder, and return the page."""
    return write_sections(
        (_section(own, folder) for own in results if own.rounds), folder
    )


def _section(results: Results, folder: Path) -> str:
    study = results.study
    series = Series(results.rounds, (*REFERENCES, *METHODS))
    parts = [f'### {TITLES[study.name]}\n']
    missing = len(results.missing(SEEDS, ROUNDS))
    if missing:
        parts.append(f'{missing} of {len(study.runs(SEEDS))} runs are missing.\n')
    figure = f'{study.name}.png'
    title = TITLES[study.name]
    if draw_rounds(
        series, study.settings, DRAWN, folder / figure, title, panels=PANELS
    ):
        parts.append(f'![mAP and dead channels by round]({figure})\n')
    parts += [
        accumulation(series, study.settings) + '\n',
        _measures(series, study.settings) + '\n',
    ]
    found = series.compare(study.settings, 'mAP', AT)
    if found:
        parts += [verdict(found) + '\n', difference_table(found, COLUMNS) + '\n']
    return '\n'.join(parts)


def accumulation(series: Series, settings: Sequence[Setting]) -> str:
    """Make a table of D, and of how much more channels are dead at the end."""
    if series.end <= WINDOW:
        return ''
    lines = []
    for setting in settings:
        decay = decay_of(setting.lr, WEIGHT_DECAY, STEPS)
        for method in METHODS:
            if not series.seeds(setting, method):
                continue
            decays = f'{decay:.2g}', f'{ROUNDS * decay:.2g}'
            if method == 'FrozenBN':  # Weight decay does not reach its beta.
                decays = '-', '-'
            changes = (
                series.change(setting, method, judge, WINDOW, series.end)
                for judge in JUDGES
            )
            cells = (_format_change(100 * np.array(one)) for one in changes)
            lines.append([setting.name, *decays, method, *cells])
    return (
        'Change of the share of dead channels from rounds '
        f'{rounds_up_to(WINDOW)} to rounds {rounds_up_to(series.end)}, in percentage '
        'points (bold: the mean grows by at least one, so they accumulate), and D:\n\n'
    ) + format_table(
        [
            'Norm layers',
            'D of a round',
            f'of {ROUNDS} rounds',
            'method',
            *JUDGES.values(),
        ],
        lines,
    )


def _format_change(points: np.ndarray) -> str:
    text = format_mean(points.tolist(), 1, '+')
    accumulated = len(points) and points.mean() >= ACCUMULATED
    return f'**{text}**' if accumulated else text


def verdict(found: Sequence[Comparison]) -> str:
    """Say in how many windows psBN has a higher mAP, and in how many a lower one."""
    better, worse = count_significant(found)
    return (
        f'The mAP of psBN is significantly higher than that of BN in {better} of '
        f'{len(found)} comparisons, and significantly lower in {worse}.'
    )


def _measures(series: Series, settings: Sequence[Setting]) -> str:
    """Make a table of mAP and dead channels, with a row for each method."""
    ends = [end for end in AT if end <= series.end]
    lines = []
    for setting in settings:
        for method in series.methods(setting):
            baseline = None if method == RESTART else RESTART
            cells = [
                format_mean(
                    series.window(setting, method, 'mAP', end, baseline),
                    3,
                    '+' if baseline else '',
                )
                for end in ends
            ]
            for judge in ('', '_by_parameters'):
                cells.append(_shares(series, setting, method, f'dead{judge}', ends))
                cells.append(
                    ' / '.join(
                        _total(series, setting, method, f'{change}{judge}')
                        for change in ('died', 'recovered')
                    )
                )
            lines.append(
                [
                    setting.name,
                    f'{method} (mAP)' if method == RESTART else method,
                    *cells,
                ]
            )
    return format_table(
        [
            'Norm layers',
            'method',
            *(f'rounds {rounds_up_to(end)}' for end in ends),
            'dead on images, %',
            'died / recovered',
            'dead by parameters, %',
            'died / recovered',
        ],
        lines,
    )


def _shares(series, setting, method, measure, ends: Sequence[int]) -> str:
    """Format a share at the end of each window, with the last one's interval."""
    values = [
        [100 * value for value in series.window(setting, method, measure, end)]
        for end in ends
    ]
    return ' / '.join(
        [f'{np.mean(own):.1f}' if own else '-' for own in values[:-1]]
        + [format_mean(own, 1) for own in values[-1:]]
    )


def _total(series, setting, method, measure) -> str:
    """Add up channels over all rounds, averaged over seeds."""
    if method in REFERENCES:
        return '-'
    values = series.window(setting, method, measure, series.end, window=series.end)
    return f'{series.end * np.mean(values):.0f}'
