"""Figures of variants over a setting, as PNG files."""

from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mmpsbn.analysis.style import STYLE

from .settings import Row, panel_of


def draw_variants(
    rows: Sequence[Row],
    x: str,
    panels: Sequence[str],
    measures: dict[str, Callable[[Row], list[float]]],
    series_of: Callable[[Row], str],
    styles: dict[str, tuple[str, str]],
    names: dict[str, str],
    out: str,
    tick: Callable[[float], str] = '{:g}'.format,
) -> None:
    """Measures over a setting: seeds as points, their mean and range.

    Args:
        rows (list[Row]): Of an experiment.
        x (str): The setting to the right.
        panels (list[str]): Settings with a column of panels for each value.
        measures (dict): For each row of panels its label, and the values of
            a variant's seeds.
        series_of (callable): The name of the line that a variant is on.
        styles (dict): For each line its color and marker.
        names (dict): Of settings, in words.
        out (str): The PNG to write.
        tick (callable): What is written at a value of ``x``.
    """
    columns = list(dict.fromkeys(panel_of(row.settings, panels) for row in rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(max(4.5, 3.2 * len(columns)), 2.5 * len(measures)),
            layout='constrained',
        )
        axes = figure.subplots(
            len(measures), len(columns), sharex='col', sharey='row', squeeze=False
        )
        for column, values in enumerate(columns):
            own = [row for row in rows if panel_of(row.settings, panels) == values]
            for axis, of in zip(axes[:, column], measures.values()):
                places = _places(axis, own, x, tick)
                for name in dict.fromkeys(map(series_of, own)):
                    draw_series(
                        axis,
                        [
                            (places[getattr(row.settings, x)], of(row))
                            for row in own
                            if series_of(row) == name
                        ],
                        name,
                        *styles[name],
                    )
            axes[0, column].set_title(
                ', '.join(
                    value
                    if isinstance(value, str)
                    else f'{names.get(name, name)} {value:g}'
                    for name, value in zip(panels, values)
                ),
                fontsize=9,
            )
            axes[-1, column].set_xlabel(names.get(x, x))
        for axis, label in zip(axes[:, 0], measures):
            axis.set_ylabel(label)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        if len(labels) > 1:
            figure.legend(
                handles,
                labels,
                loc='outside upper right',
                ncols=len(labels),
                frameon=False,
            )
        figure.savefig(out, dpi=150)


def draw_series(
    axis,
    points: Sequence[tuple[float, list[float]]],
    label: str,
    color: str,
    marker: str,
) -> None:
    """A line of means with the range and the values of the seeds."""
    points = [(place, values) for place, values in points if values]
    at = [place for place, _ in points]
    axis.plot(at, [np.mean(values) for _, values in points], color=color, label=label)
    axis.fill_between(
        at,
        [min(values) for _, values in points],
        [max(values) for _, values in points],
        color=color,
        alpha=0.15,
        lw=0,
    )
    for place, values in points:
        axis.plot(
            [place] * len(values), values, marker, color=color, ms=3, alpha=0.6, mew=0
        )
    axis.grid(lw=0.4)


def by_logarithm(
    axis, values: Sequence[float], tick: Callable[[float], str] = '{:g}'.format
) -> None:
    """A tick at each value, written where there is room for it."""
    labels, last = [], 0
    for value in values:
        room = value > 1.4 * last
        labels.append(tick(value) if room else '')
        last = value if room else last
    axis.set_xscale('log')
    axis.set_xticks(values, labels)
    axis.minorticks_off()


def _places(axis, rows, x, tick) -> dict:
    """Where values are drawn: by logarithm, or in turn if 0 is among them."""
    values = sorted({getattr(row.settings, x) for row in rows})
    if values[0] > 0:
        by_logarithm(axis, values, tick)
        return {value: value for value in values}
    axis.set_xticks(range(len(values)), [tick(value) for value in values])
    return {value: place for place, value in enumerate(values)}
