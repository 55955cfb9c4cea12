"""Figures of a comparison, as PNG files."""

from collections.abc import Sequence

import numpy as np
from matplotlib.lines import Line2D

from mmpsbn.analysis.style import assign_colors, figure_file
from mmpsbn.compare.costs import Costs
from mmpsbn.statistics.intervals import confidence_margin
from mmpsbn.statistics.tables import format_length, format_lr

MARKERS = 'os^Dv<>'
OFFSET = 0.2  # The width of the normalizations at one learning rate, as a share.


def draw_scores(rows, out: str) -> None:
    """Draw the mAP of every seed as a dot, and the mean of a row as a bar."""
    colors = assign_colors(row.norm for row in rows)
    several_lrs = len({row.lr for row in rows}) > 1
    several_lengths = len({row.length for row in rows}) > 1
    with figure_file(out, 6.5, 1 + 0.35 * len(rows)) as figure:
        axis = figure.subplots()
        for place, row in enumerate(rows):
            style = dict(color=colors[row.norm])
            places = [place] * len(row.scores)
            axis.plot(row.scores, places, 'o', ms=5, alpha=0.7, mew=0, **style)
            axis.plot([row.mean] * 2, [place - 0.3, place + 0.3], lw=2, **style)
        labels = [
            row.norm
            + f', {format_length(row.length)}' * several_lengths
            + f', lr {format_lr(row.lr)}' * several_lrs
            for row in rows
        ]
        axis.set_yticks(range(len(rows)), labels)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlabel('mAP')
        axis.grid(False, axis='y')


def draw_lrs(panels: dict[str, Sequence], out: str, title: str = '') -> None:
    """Draw mAP and dead channels by learning rate, in a column for each panel.

    A line joins the means, and a bar is the 95 % confidence interval.

    Args:
        panels (dict): The title of each panel, and its rows of a report.
        out (str): The PNG to write.
        title (str): The title. Defaults to none.
    """
    colors = assign_colors(row.norm for rows in panels.values() for row in rows)
    styles = {
        norm: dict(color=color, marker=MARKERS[i % len(MARKERS)], lw=1.2, ms=4)
        for i, (norm, color) in enumerate(colors.items())
    }
    offsets = np.arange(len(styles)) - (len(styles) - 1) / 2
    factors = dict(zip(styles, 1 + OFFSET * offsets / max(1, len(styles))))
    with figure_file(out, max(4.5, 0.6 + 2.9 * len(panels)), 5) as figure:
        shared = dict(sharex='col', sharey='row', squeeze=False)
        axes = figure.subplots(2, len(panels), **shared)
        for (above, below), (name, rows) in zip(axes.T, panels.items()):
            for norm, style in styles.items():
                own = [row for row in rows if row.norm == norm]
                places = [row.lr * factors[norm] for row in own]
                dead = [[100 * share for share in row.dead] for row in own]
                _draw_intervals(above, places, [row.scores for row in own], style)
                _draw_intervals(below, places, dead, style)
            lrs = sorted({row.lr for row in rows})
            above.set_title(name)
            limits = lrs[0] / 1.5, lrs[-1] * 1.5
            below.set(xlabel='learning rate', xscale='log', xlim=limits)
            below.set_xticks(lrs, [format_lr(lr) for lr in lrs])
            below.minorticks_off()
        for axis, label in zip(axes[:, 0], ('mAP', 'dead channels, %')):
            axis.set_ylabel(label)
        axes[1, 0].set_ylim(bottom=0)
        handles = [Line2D([], [], **style) for style in styles.values()]
        columns = min(len(styles), 2 + len(panels))
        figure.legend(handles, list(styles), loc='outside lower center', ncols=columns)
        if title:
            figure.suptitle(title)


def _draw_intervals(axis, places, values, style: dict) -> None:
    """Draw means and intervals; places without values are left out."""
    points = [(place, own) for place, own in zip(places, values) if own]
    if not points:  # An empty line that is not clipped breaks the layout.
        return
    shown, means = zip(*((place, np.mean(own)) for place, own in points))
    axis.plot(shown, means, clip_on=False, **style)
    margins = [confidence_margin(own) if len(own) > 1 else 0 for _, own in points]
    axis.errorbar(
        shown, means, margins, fmt='none', ecolor=style['color'], elinewidth=1.2
    )


def draw_curves(
    curves: dict[str, Sequence[dict[int, float]]],
    out: str,
    *,
    xlabel: str,
    ylabel: str,
    bottom: float | None = None,
) -> None:
    """Draw the mean of the curves of each normalization during training.

    A band is the 95 % confidence interval if there are at least two curves.
    Points that are not on all curves are left out. ``bottom`` is the lower end of
    the y-axis; by default, the data decide.
    """
    colors = assign_colors(curves)
    with figure_file(out, 6.5, 3.5) as figure:
        axis = figure.subplots()
        for name, own in curves.items():
            x = sorted(set.intersection(*map(set, own)))
            values = np.array([[curve[at] for at in x] for curve in own])
            mean = values.mean(0)
            axis.plot(x, mean, color=colors[name], label=name, marker='.')
            if len(values) > 1:
                half = confidence_margin(values)
                style = dict(lw=0, color=colors[name], alpha=0.2)
                axis.fill_between(x, mean - half, mean + half, **style)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.set_ylim(bottom=bottom)
        if curves:
            figure.legend(loc='outside right upper')


def draw_costs(costs: Costs, out: str) -> None:
    """Draw the time and memory of a training step as bars."""
    panels = {
        'training step, ms': [1e3 * cost.step for cost in costs.values()],
        'stored, MiB': [cost.stored for cost in costs.values()],
    }
    if all(cost.peak is not None for cost in costs.values()):
        panels['peak, MiB'] = [cost.peak for cost in costs.values()]
    colors = list(assign_colors(costs).values())
    with figure_file(out, 6.5, 1 + 0.3 * len(costs)) as figure:
        axes = figure.subplots(1, len(panels), sharey=True)
        for axis, (title, values) in zip(axes, panels.items()):
            bars = axis.barh(list(costs), values, color=colors)
            axis.bar_label(bars, fmt='%.0f', padding=2, fontsize=8)
            axis.margins(x=0.15)
            axis.set_xlabel(title)
            axis.grid(False, axis='y')
        axes[0].invert_yaxis()
