"""Figures, as PNG files: variants, laws, and paths of channels."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.shared.figures import by_logarithm, draw_variants
from mmpsbn.analysis.style import COLORS, STYLE

LINES = {'BN': (COLORS[0], 'o'), 'psBN': (COLORS[5], 's')}
ALIVE, BACK, DEAD = '#BBBBBB', COLORS[2], COLORS[5]
NAMES = {
    'lr': 'learning rate',
    'gamma': 'gamma at the start',
    'alpha': 'alpha',
    'norm_decay': 'decay of gamma and beta, as a multiple',
}


def draw_accuracy_and_dead(rows, x: str, panels: Sequence[str], out: str) -> None:
    """Dead channels and accuracy over a setting.

    Args:
        rows (list[Row]): Of an experiment.
        x (str): The setting to the right.
        panels (list[str]): Settings with a panel for each value.
        out (str): The PNG to write.
    """
    # Along alpha BN is the first value, not a line of its own.
    along = x == 'alpha'
    draw_variants(
        rows,
        x,
        panels,
        {
            'dead channels, %': lambda row: row.shares('dead'),
            'test accuracy, %': lambda row: row.accuracies,
        },
        lambda row: 'psBN' if along else row.settings.norm,
        LINES,
        NAMES,
        out,
        lambda value: 'BN' if along and not value else f'{value:g}',
    )


def draw_law(fits, out: str) -> None:
    """Shares that died, by logarithms, with fits and the paper's slope.

    Args:
        fits (list[Fitted]): Of one moment.
        out (str): The PNG to write.
    """
    kinds = list(dict.fromkeys((fit.network, fit.x) for fit in fits))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(4.5, 3.2 * len(kinds)), 3.6), layout='constrained')
        axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axis, kind in zip(axes, kinds):
            own = [fit for fit in fits if (fit.network, fit.x) == kind]
            _draw_fits(axis, own, kind[1])
            axis.set(title=kind[0], xlabel=NAMES[kind[1]])
            axis.legend(frameon=False, fontsize=7)
        axes[0].set_ylabel('-ln(1 - share that died)')
        figure.savefig(out, dpi=150)


def _draw_fits(axis, fits, x) -> None:
    rows = fits[0].rows
    at = np.array([getattr(row.settings, x) for row in rows])
    shares = [np.array(row.shares('died')) / 100 for row in rows]
    for place, own in zip(at, shares):
        own = own[(own > 0) & (own < 1)]
        axis.plot(
            [place] * len(own),
            -np.log1p(-own),
            'o',
            ms=3,
            mew=0,
            color=COLORS[0],
            alpha=0.5,
        )
    means = np.array([own.mean() if len(own) else np.nan for own in shares])
    shown = (means > 0) & (means < 1)
    rates = -np.log1p(-means[shown])
    axis.plot(at[shown], rates, 'D', ms=5, color=COLORS[0], label='all seeds')
    for fit, color, style, which in zip(
        fits, COLORS[4:], ('-', '-.'), ('all', 'few died')
    ):
        if fit.law:
            values = [getattr(row.settings, x) for row in fit.rows]
            line = np.geomspace(min(values), max(values))
            axis.plot(
                line,
                fit.law.factor * line**fit.law.exponent,
                style,
                color=color,
                label=f'fit, {which}: {fit.law.exponent:.2f}',
            )
    if shown.any():
        slope = 2 if x == 'lr' else -2
        middle = len(rates) // 2
        axis.plot(
            at,
            rates[middle] * (at / at[shown][middle]) ** slope,
            ':',
            color='#000000',
            lw=1,
            label=f'slope {slope}',
        )
        axis.set_ylim(rates.min() / 4, max(rates.max() * 2, 1))
        axis.set_yscale('log')
    by_logarithm(axis, at)
    axis.grid(lw=0.4)


def draw_paths(rows, out: str) -> None:
    """Every channel's way in the plane of gamma and applied shift.

    One seed; the last panel has the dead channels of all seeds over time.
    "Without decay" is that of gamma and beta.

    Args:
        rows (list[Row]): Of the experiment on recovery.
        out (str): The PNG to write.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 6), layout='constrained')
        axes = figure.subplots(2, 3)
        for axis, row, letter in zip(axes.flat, rows, 'abcde'):
            _draw_plane(axis, row.results[0])
            axis.set_title(f'{letter}  {_title(row.settings)}', fontsize=9)
        axis = axes.flat[-1]
        for index, (row, letter) in enumerate(zip(rows, 'abcde')):
            runs = [r for r in row.results if not r['diverged']]
            if not runs:
                continue
            dead = np.array([100 * np.array(r['dead']) / r['channels'] for r in runs])
            steps = runs[0]['steps']
            axis.plot(steps, dead.mean(0), color=COLORS[index])
            axis.annotate(
                letter,
                (steps[-1], dead.mean(0)[-1]),
                (4, 0),
                textcoords='offset points',
                va='center',
                fontsize=7,
            )
            axis.fill_between(
                steps, dead.min(0), dead.max(0), lw=0, color=COLORS[index], alpha=0.15
            )
        axis.set(xlabel='step', ylabel='dead channels, %', ylim=(0, None))
        axis.set_title('all seeds: mean and range', fontsize=9)
        handles = [
            matplotlib.lines.Line2D([], [], color=color, marker=marker, label=label)
            for color, marker, label in (
                (ALIVE, '.', 'never dead'),
                (BACK, 'o', 'dead, came back'),
                (DEAD, 'x', 'dead at the end'),
            )
        ]
        figure.legend(
            handles=handles, loc='outside lower center', ncols=3, frameon=False
        )
        figure.savefig(out, dpi=150)


def _draw_plane(axis, result) -> None:
    gamma, shift = np.array(result['gamma']), np.array(result['shift'])
    dead = np.zeros(gamma.shape, bool)
    for point, channels in enumerate(result['dead_channels']):
        dead[point, channels] = True
    groups = (
        (~dead.any(0), ALIVE, '.', 0.4),
        (dead.any(0) & ~dead[-1], BACK, 'o', 0.8),
        (dead[-1], DEAD, 'x', 0.8),
    )
    for own, color, marker, width in groups:
        axis.plot(gamma[:, own], shift[:, own], color=color, lw=width, alpha=0.7)
        axis.plot(gamma[-1, own], shift[-1, own], marker, color=color, ms=4, ls='')
    axis.axhline(0, color='#808080', lw=0.6)
    axis.axvline(0, color='#808080', lw=0.6)
    axis.set(xlabel='gamma', ylabel='applied shift')


def _title(settings) -> str:
    decay = '' if settings.norm_decay else ' without decay'
    source = 'on from the end of a: ' if settings.start else 'from scratch: '
    return f'{source}{settings.norm}{decay}'
