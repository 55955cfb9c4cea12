"""Figures, as PNG files: variants, laws, and recovery."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.shared.figures import by_logarithm, draw_variants
from mmpsbn.analysis.style import COLOR_OF, COLORS, STYLE, figure_file
from mmpsbn.compare.intervals import confidence_margin

LINES = {'BN': (COLOR_OF['BN'], 'o'), 'psBN': (COLOR_OF['psBN'], 's')}
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


def draw_recovery(rows, out: str) -> None:
    """Dead channels over the steps: mean of the seeds with 95 % intervals.

    Args:
        rows (list[Row]): Of the experiment on recovery.
        out (str): The PNG to write.
    """
    with figure_file(out, 6.5, 3.2) as figure:
        axis, lines = figure.subplots(), []
        for row in rows:
            runs = [r for r in row.results if not r['diverged']]
            if not runs:
                continue
            settings = row.settings
            color, style = COLOR_OF[settings.norm], '-' if settings.start else '--'
            style = style if settings.norm_decay else ':'
            dead = np.array([100 * np.array(r['dead']) / r['channels'] for r in runs])
            steps, mean = runs[0]['steps'], dead.mean(0)
            lines += axis.plot(steps, mean, style, color=color, label=_title(settings))
            if len(runs) > 1:
                margin = [confidence_margin(own) for own in dead.T]
                axis.fill_between(
                    steps, mean - margin, mean + margin, lw=0, color=color, alpha=0.15
                )
        axis.set(xlabel='training step', ylabel='dead channels, %', ylim=(0, None))
        axis.grid(lw=0.4)
        lines.sort(key=lambda line: -line.get_ydata()[-1])
        figure.legend(handles=lines, loc='outside right center', frameon=False)


def _title(settings) -> str:
    decay = '' if settings.norm_decay else ' without decay'
    source = 'from collapsed BN: ' if settings.start else 'from scratch: '
    return f'{source}{settings.norm}{decay}'
