"""Figures of a comparison, as PNG files."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmpsbn.analysis.style import COLORS, STYLE
from mmpsbn.compare.costs import Cost
from mmpsbn.compare.intervals import margin
from mmpsbn.compare.tables import format_lr, times

MARKERS = 'os^Dv<>'
ASIDE = 0.2  # Of a learning rate, from the first normalization to the last.


def draw_scores(rows, out: str) -> None:
    """Every seed's mAP as a dot, and the mean of a row as a bar.

    Args:
        rows (list[Row]): Of the report.
        out (str): The PNG to write.
    """
    norms = list(dict.fromkeys(row.norm for row in rows))
    many = len({row.lr for row in rows}) > 1
    lengths = len({row.length for row in rows}) > 1
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 1 + 0.35 * len(rows)), layout='constrained')
        axis = figure.subplots()
        for place, row in enumerate(rows):
            colour = COLORS[norms.index(row.norm) % len(COLORS)]
            axis.plot(
                row.scores,
                [place] * len(row.scores),
                'o',
                ms=5,
                color=colour,
                alpha=0.7,
                mew=0,
            )
            axis.plot([row.mean] * 2, [place - 0.3, place + 0.3], lw=2, color=colour)
        axis.set_yticks(
            range(len(rows)),
            [
                row.norm
                + f', {times(row.length)}' * lengths
                + f', lr {format_lr(row.lr)}' * many
                for row in rows
            ],
        )
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlabel('mAP')
        axis.grid(axis='x', lw=0.4)
        figure.savefig(out, dpi=150)


def draw_lrs(panels: dict[str, Sequence], out: str) -> None:
    """mAP and dead channels by learning rate, a column for each panel.

    Means as points that a line joins, and the range of the seeds as a bar;
    normalizations stand a little aside of one another.

    Args:
        panels (dict): For each title some rows of the report.
        out (str): The PNG to write.
    """
    norms = list(dict.fromkeys(row.norm for rows in panels.values() for row in rows))
    middle = (len(norms) - 1) / 2
    styles = {
        norm: dict(
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % len(MARKERS)],
            lw=1.2,
            ms=4,
        )
        for index, norm in enumerate(norms)
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(max(4.5, 0.6 + 2.9 * len(panels)), 4.8), layout='constrained'
        )
        axes = figure.subplots(
            2, len(panels), sharex='col', sharey='row', squeeze=False
        )
        for (above, below), (title, rows) in zip(axes.T, panels.items()):
            for index, norm in enumerate(norms):
                own = [row for row in rows if row.norm == norm]
                places = [
                    row.lr * (1 + ASIDE * (index - middle) / len(norms)) for row in own
                ]
                _draw_ranges(above, places, [row.scores for row in own], styles[norm])
                _draw_ranges(
                    below,
                    places,
                    [[100 * x for x in row.dead] for row in own],
                    styles[norm],
                )
            lrs = sorted({row.lr for row in rows})
            above.set_title(title, fontsize=9)
            below.set(
                xlabel='learning rate', xscale='log', xlim=(lrs[0] / 1.5, lrs[-1] * 1.5)
            )
            below.set_xticks(lrs, [format_lr(lr) for lr in lrs])
            below.minorticks_off()
        for axis, label in zip(axes[:, 0], ('mAP', 'dead channels, %')):
            axis.set_ylabel(label)
            axis.set_ylim(bottom=0)
        for axis in axes.flat:
            axis.grid(lw=0.4)
        figure.legend(
            [Line2D([], [], **style) for style in styles.values()],
            norms,
            loc='outside right upper',
            frameon=False,
        )
        figure.savefig(out, dpi=150)


def _draw_ranges(axis, places, values, style) -> None:
    """Means, joined, and ranges; a place may have no values."""
    points = [(place, own) for place, own in zip(places, values) if own]
    if not points:  # An empty line that is not clipped breaks the layout.
        return
    axis.plot(
        [place for place, _ in points],
        [np.mean(own) for _, own in points],
        clip_on=False,
        **style,
    )
    for place, own in points:
        axis.plot([place] * 2, [min(own), max(own)], lw=1.2, color=style['color'])


def draw_curves(
    curves: dict[str, Sequence[dict[int, float]]], unit: str, out: str
) -> None:
    """mAP while training, by epoch or iteration: see :func:`_draw_lines`."""
    _draw_lines(curves, unit, 'mAP', out)


def draw_collapse(histories: dict[str, Sequence[dict[int, float]]], out: str) -> None:
    """Per cent of dead channels while training, see :func:`_draw_lines`."""
    _draw_lines(histories, 'iteration', 'dead channels, %', out)


def _draw_lines(
    lines: dict[str, Sequence[dict[int, float]]], xlabel: str, ylabel: str, out: str
) -> None:
    """Draw for each name the mean of its lines.

    A band is the 95 % confidence interval, where there are at least two
    lines. Points that not all lines have are left out.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 3.5), layout='constrained')
        axis = figure.subplots()
        for index, (name, own) in enumerate(lines.items()):
            x = sorted(set.intersection(*map(set, own)))
            values = np.array([[line[at] for at in x] for line in own])
            colour = COLORS[index % len(COLORS)]
            axis.plot(x, values.mean(0), color=colour, label=name, marker='.')
            if len(values) > 1:
                mean, half = values.mean(0), margin(values)
                axis.fill_between(
                    x, mean - half, mean + half, lw=0, color=colour, alpha=0.2
                )
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.set_ylim(bottom=0)
        axis.grid(lw=0.4)
        if lines:
            figure.legend(loc='outside right upper', frameon=False)
        figure.savefig(out, dpi=150)


def draw_costs(costs: dict[str, Cost], out: str) -> None:
    """Time of a step, saved and, on a GPU, peak memory, as bars.

    Args:
        costs (dict): Of the normalizations.
        out (str): The PNG to write.
    """
    panels = {
        'training step, ms': [1e3 * cost.step for cost in costs.values()],
        'saved, MiB': [cost.saved for cost in costs.values()],
    }
    if all(cost.peak is not None for cost in costs.values()):
        panels['peak, MiB'] = [cost.peak for cost in costs.values()]
    colours = [COLORS[i % len(COLORS)] for i in range(len(costs))]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 1 + 0.3 * len(costs)), layout='constrained')
        axes = figure.subplots(1, len(panels), sharey=True)
        for axis, (title, values) in zip(axes, panels.items()):
            bars = axis.barh(list(costs), values, color=colours)
            axis.bar_label(bars, fmt='%.0f', padding=2, fontsize=8)
            axis.margins(x=0.15)
            axis.set_xlabel(title)
        axes[0].invert_yaxis()
        figure.savefig(out, dpi=150)
