"""Figures, as PNG files: variants, laws, and recovery."""

from pathlib import Path

import numpy as np

from benchmarks.shared.figures import by_logarithm, draw_series
from benchmarks.shared.settings import Experiment, panel_of
from mmpsbn.analysis.style import COLOR_OF, figure_file

from .experiments import epochs_of_counts
from .fits import format_exponent, mean_law

MARKERS = {'BN': 'o', 'psBN': 's'}
NAMES = {'lr': 'learning rate', 'gamma': 'initial gamma', 'alpha': 'alpha of psBN'}
SHARE = (0, 100)
GRAY = '#808080'


def draw_variants(rows, experiment: Experiment, title: str, out: Path) -> None:
    """Draw dead channels and accuracy over a setting.

    Args:
        rows (list[Row]): The variants.
        experiment (Experiment): Their experiment, which has panels.
        title (str): The title, to which the name of a single network is added.
        out (Path): The PNG to write.
    """
    x, panels = experiment.x, experiment.panels
    columns = list(dict.fromkeys(panel_of(row.settings, panels) for row in rows))
    with figure_file(str(out), 3.6 * len(columns), 4.6) as figure:
        axes = figure.subplots(
            2, len(columns), sharex='col', sharey='row', squeeze=False
        )
        for column, values in zip(axes.T, columns):
            own = [row for row in rows if panel_of(row.settings, panels) == values]
            places = sorted({getattr(row.settings, x) for row in own} - {0})
            for norm, marker in MARKERS.items():
                line = [row for row in own if row.settings.norm == norm]
                style = dict(color=COLOR_OF[norm], marker=marker, ms=3.5, label=norm)
                for axis, measure in zip(
                    column, (lambda row: row.shares('dead'), lambda row: row.accuracies)
                ):
                    points = [(getattr(row.settings, x), measure(row)) for row in line]
                    # BN has no alpha: its line is constant.
                    if x == 'alpha' and norm == 'BN':
                        points = [(at, points[0][1]) for at in places]
                        style.update(marker='', ls='--')
                    draw_series(axis, points, SHARE, **style)
            by_logarithm(column[-1], places)
            column[-1].set_xlabel(NAMES[x])
            (name,), (value,) = panels, values
            column[0].set_title(
                value if name == 'network' else f'{NAMES[name]} {value:g}'
            )
        axes[0, 0].set_ylabel('dead channels, %')
        axes[1, 0].set_ylabel('test accuracy, %')
        axes[0, 0].legend()
        networks = {row.settings.network for row in rows}
        figure.suptitle(title if len(networks) > 1 else f'{title}, {networks.pop()}')


def draw_law(fits, title: str, out: Path) -> None:
    """Draw the shares that died, with the fitted laws and the paper's slope.

    Args:
        fits (list[Fit]): The fits of one moment.
        title (str): The title.
        out (Path): The PNG to write.
    """
    kinds = list(dict.fromkeys((fit.network, fit.x) for fit in fits))
    with figure_file(str(out), 2.8 * len(kinds), 4) as figure:
        axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        rates = []
        for axis, (network, x) in zip(axes, kinds):
            rates += _draw_fits(
                axis, [fit for fit in fits if (fit.network, fit.x) == (network, x)]
            )
            axis.set_title(f'{network}, BN')
            axis.set_xlabel(NAMES[x])
            axis.legend(fontsize=8, loc='upper center', bbox_to_anchor=(0.5, -0.27))
        axes[0].set_ylabel('-ln(1 - share of channels that died)')
        figure.suptitle(title)
        axes[0].set(yscale='log', ylim=(min(rates) / 2, 2 * max(rates)))


def _draw_fits(axis, fits) -> list[float]:
    """Draw a panel, and return the heights of its points."""
    rows, x = fits[0].rows, fits[0].x
    at = np.array([getattr(row.settings, x) for row in rows])
    shares = [np.array(row.shares('died')) / 100 for row in rows]
    # Shares of 0 and 1 have no place on this axis.
    inside = [own[(own > 0) & (own < 1)] for own in shares]
    for place, own in zip(at, inside):
        axis.plot(
            [place] * len(own), -np.log1p(-own), 'o', ms=4, mew=0, color=COLOR_OF['BN']
        )
    rates = -np.log1p(-np.concatenate(inside))
    for fit, style, which in zip(fits, ('-', '--'), ('all', 'few died')):
        if fit.laws:
            law = mean_law(fit.laws)
            values = [getattr(row.settings, x) for row in fit.rows]
            line = np.geomspace(min(values), max(values))
            axis.plot(
                line,
                law.factor * line**law.exponent,
                style,
                color='black',
                label=f'fit, {which}: {format_exponent(fit.laws)}',
            )
    if len(rates):
        slope = 2 if x == 'lr' else -2
        middle = [(place, own.mean()) for place, own in zip(at, inside) if len(own)]
        place, rate = middle[len(middle) // 2]
        axis.plot(
            at,
            -np.log1p(-rate) * (at / place) ** slope,
            ':',
            color=GRAY,
            label=f"the paper's slope: {slope}",
        )
    by_logarithm(axis, at)
    return rates.tolist()


def draw_recovery(rows, title: str, out: Path) -> None:
    """Draw the dead channels over the epochs.

    Args:
        rows (list[Row]): The variants of the experiment on recovery.
        title (str): The title, to which the name of the network is added.
        out (Path): The PNG to write.
    """
    with figure_file(str(out), 6.5, 3.2) as figure:
        axis = figure.subplots()
        for row in rows:
            settings = row.settings
            style = '-' if settings.start else '--'
            draw_series(
                axis,
                [
                    (epoch, row.shares('dead', count))
                    for count, epoch in enumerate(epochs_of_counts(settings.epochs))
                ],
                SHARE,
                color=COLOR_OF[settings.norm],
                ls=style if settings.norm_decay else ':',
                label=_title(settings),
            )
        axis.set(xlabel='epoch', ylabel='dead channels, %', ylim=(0, None))
        lines = sorted(axis.get_lines(), key=lambda line: -line.get_ydata()[-1])
        figure.legend(handles=lines, loc='outside right center')
        figure.suptitle(f'{title}, {rows[0].settings.network}')


def _title(settings) -> str:
    decay = '' if settings.norm_decay else ' without decay'
    source = 'from collapsed BN: ' if settings.start else 'from random weights: '
    return f'{source}{settings.norm}{decay}'
