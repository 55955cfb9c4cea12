"""Tables and figures of the studies, from their CSV files alone."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

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
from mmpsbn.statistics.intervals import ALPHA
from mmpsbn.statistics.tables import format_difference, format_table

from .figures import SHORT, draw_recoveries, draw_rounds
from .recovery import COLLAPSED, Death
from .results import Results
from .studies import HIGHEST, METHODS, PAIR, ROUNDS, SCRATCH, SEEDS, Setting

AT = (10, 50, 100, 150)
WAITS = ((1, 1), (2, 3), (4, 10), (11, 30), (31, math.inf))
COLUMNS = {
    'Learning rate': lambda setting: f'{setting.lr:g}',
    'weight decay': lambda setting: f'{setting.weight_decay:g}',
}
TITLES = {
    'cifar10-plain': 'CIFAR-10, plain network',
    'cifar10-residual': 'CIFAR-10, residual network',
    'digits-plain': 'Digits, plain network',
}


def write_report(results: Sequence[Results], folder: Path) -> Path:
    """Write the page and its figures into a folder, and return the page."""
    return write_sections(
        (_section(own, folder) for own in results if own.rounds), folder
    )


def _section(results: Results, folder: Path) -> str:
    study, series = results.study, Series(results.rounds, (SCRATCH, *METHODS))
    name = study.name
    parts = [f'### {TITLES[name]}\n']
    missing = len(results.missing(SEEDS, ROUNDS))
    if missing:
        parts.append(f'{missing} of {len(study.runs(SEEDS))} runs are missing.\n')
    found = series.compare(study.methods, 'accuracy', AT)
    if found:
        dead = series.compare(study.methods, 'dead', AT)
        parts += [
            f'{verdict(found)} {_of_dead(dead)}\n',
            difference_table(found, COLUMNS) + '\n',
        ]
    figure = f'{name}.png'
    title = f'{TITLES[name]}, learning rate {HIGHEST.lr:g}'
    if draw_rounds(series, [HIGHEST], WINDOW, folder / figure, title, PAIR, SHORT):
        parts.append(
            '![Accuracy, dead channels and effective rank of BN and psBN over the '
            f'rounds, learning rate {HIGHEST.lr:g}]({figure})\n'
        )
    for decay in dict.fromkeys(setting.weight_decay for setting in study.methods):
        figure = f'{name}-{decay:g}.png'
        settings = [own for own in study.methods if own.weight_decay == decay]
        title = f'{TITLES[name]}, weight decay {decay:g}'
        if draw_rounds(series, settings, WINDOW, folder / figure, title):
            parts.append(
                '![Accuracy, dead channels, effective rank and weight norm over '
                f'the rounds, weight decay {decay:g}]({figure})\n'
            )
    for setting in study.methods:
        if series.methods(setting):
            parts += [
                f'Learning rate {setting.lr:g}, weight decay '
                f'{setting.weight_decay:g}:\n',
                _measures(series, setting) + '\n',
            ]
    # The others can recover after the last round.
    due = [
        death
        for own in results.deaths.values()
        for death in own
        if death.predicted <= series.end
    ]
    if due:
        parts += [_recoveries(due, series.end) + '\n']
        title = f'{TITLES[name]}, psBN'
        if draw_recoveries(due, title, folder / f'{name}-recovery.png'):
            parts.append(
                '![Predicted and observed rounds until a channel '
                f'recovers]({name}-recovery.png)\n'
            )
    return '\n'.join(parts)


def verdict(found: Sequence[Comparison]) -> str:
    """Say in how many windows psBN is better, and where it is worse."""
    more, less = count_significant(found)
    worse = [one for one in found if one.p < ALPHA and one.paired.mean < 0]
    text = (
        f'psBN is significantly more accurate than BN in {more} of {len(found)} '
        f'comparisons, and significantly less accurate in {less}'
    )
    if worse:
        text += ': ' + '; '.join(
            f'{_in_words(one)} ({format_difference(one.paired.mean)})' for one in worse
        )
    lower = [one for one in found if one.paired.mean < 0 and one not in worse]
    if lower:
        least = min(lower, key=lambda one: one.paired.mean)
        text += (
            f'. In {len(lower)} further comparisons its mean is lower '
            f'without being significantly different, by '
            f'{-least.paired.mean:.3f} at most ({_in_words(least)})'
        )
    return text + '.'


def _of_dead(found: Sequence[Comparison]) -> str:
    """Say in how many windows psBN has more or fewer dead channels."""
    more, fewer = count_significant(found)
    return (
        f'It has significantly fewer dead channels in {fewer}, and significantly '
        f'more in {more}.'
    )


def _in_words(one: Comparison) -> str:
    return (
        f'learning rate {one.setting.lr:g}, weight decay '
        f'{one.setting.weight_decay:g}, rounds {rounds_up_to(one.end)}'
    )


def _measures(series: Series, setting: Setting) -> str:
    ends = [end for end in AT if end <= series.end]
    lines = []
    for method in series.methods(setting):

        def means(measure, factor=1.0, digits=1):
            values = [series.window(setting, method, measure, end) for end in ends]
            return ' / '.join(
                f'{factor * np.mean(own):.{digits}f}' if own else '-' for own in values
            )

        cells = []
        for end in ends:
            baseline = None if method == SCRATCH else SCRATCH
            own = series.window(setting, method, 'accuracy', end, baseline)
            cells.append(format_mean(own, 3, '+' if baseline else ''))
        lines.append(
            [
                'from scratch (accuracy)' if method == SCRATCH else method,
                *cells,
                means('dead', 100.0),
                means('rank'),
                means('norm'),
            ]
        )
    return format_table(
        [
            'Method',
            *(f'rounds {rounds_up_to(end)}' for end in ends),
            'dead, %',
            'effective rank',
            'weight norm',
        ],
        lines,
    )


def _recoveries(deaths: Sequence[Death], last: int) -> str:
    """Compare predicted and observed rounds until recovery.

    Args:
        deaths (list[Death]): Those that are predicted to recover in time.
        last (int): The last round.
    """
    lines = []
    for collapsed in (True, False):
        for least, most in WAITS:
            due = [
                death
                for death in deaths
                if death.collapsed == collapsed
                and least <= death.predicted - death.died <= most
            ]
            back = [death for death in due if death.recovered]
            errors, simulated = (
                np.array([death.recovered - getattr(death, name) for death in back])
                for name in ('predicted', 'simulated')
            )
            if due:
                span = (
                    f'{least}'
                    if least == most
                    else f'{least} or more'
                    if most == math.inf
                    else f'{least} to {most}'
                )
                shares = [
                    (errors < -1).sum(),
                    (errors == 0).sum(),
                    (abs(errors) <= 1).sum(),
                    (errors > 1).sum(),
                    len(due) - len(back),
                    (abs(simulated) <= 1).sum(),
                ]
                lines.append(
                    [
                        f'{"<" if collapsed else ">="} {COLLAPSED}',
                        span,
                        str(len(due)),
                        *(f'{100 * share / len(due):.0f}' for share in shares),
                    ]
                )
    return (
        'Channels of psBN that died and were predicted to recover within '
        f'the {last} rounds:\n\n'
    ) + format_table(
        [
            'abs(gamma / beta) at death',
            'predicted rounds',
            'channels',
            'earlier by 2 or more, %',
            'predicted round, %',
            'predicted ± 1 round, %',
            'later by 2 or more, %',
            'not recovered, %',
            'simulated ± 1 round, %',
        ],
        lines,
    )
