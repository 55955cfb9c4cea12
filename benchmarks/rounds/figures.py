"""Figures of the studies, as PNG files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.shared.series import Series
from mmpsbn.analysis.style import COLORS, STYLE
from mmpsbn.compare.intervals import confidence_margin

from .recovery import COLLAPSED, Death
from .studies import METHODS, SCRATCH

METHOD_COLORS = dict(
    zip(
        (*METHODS, SCRATCH),
        (COLORS[0], COLORS[5], COLORS[2], COLORS[3], COLORS[4], COLORS[1], COLORS[7]),
    )
)


class Panels(NamedTuple):
    """What a figure of rounds shows."""

    measures: dict[str, tuple[str, tuple | None]]
    """The label and the limits of each measure. The first measure is drawn
    minus that of the reference."""
    percent: frozenset[str]
    """The measures that are shares, drawn in percent."""
    reference: str
    """The method whose values are subtracted."""
    reference_name: str
    colors: dict[str, str]
    """The color of each method."""
    title: Callable[[NamedTuple], str]
    """Names a setting."""


PANELS = Panels(
    {
        'accuracy': ('accuracy minus\nthat from scratch', None),
        'dead': ('dead channels, %', (0, 100)),
        'rank': ('effective rank', (0, None)),
    },
    frozenset(['dead']),
    SCRATCH,
    'from scratch',
    METHOD_COLORS,
    lambda setting: f'learning rate {setting.lr:g}',
)


def draw_rounds(
    series: Series,
    settings: Sequence,
    window: int,
    out: Path,
    methods: Sequence[str] = (),
    panels: Panels = PANELS,
) -> bool:
    """Draw the measures over the rounds, averaged over windows of rounds.

    Bands are 95 % confidence intervals of the mean over seeds.

    Args:
        series (Series): The rounds of a study.
        settings (list[Setting]): Each one is a column. The measures of a
            single one are in a row.
        window (int): The number of rounds of a window.
        out (Path): The PNG to write.
        methods (list[str]): The methods to draw. Defaults to all.
        panels (Panels): The measures, colors and titles.

    Returns:
        bool: Whether there was anything to draw.
    """
    settings = sorted(setting for setting in settings if series.methods(setting))
    ends = range(window, series.end + 1, window)
    if not settings or not ends:
        return False
    measures, colors = panels.measures, panels.colors
    shape = (len(measures), len(settings))
    in_row = len(settings) == 1
    height = 0.2 + 2 * len(measures)
    size = (9, 3) if in_row else (min(9.4, 1.6 + 2.6 * len(settings)), height)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout='constrained')
        if in_row:
            axes = figure.subplots(*shape[::-1], squeeze=False).T
        else:
            axes = figure.subplots(*shape, sharey='row', squeeze=False)
        handles = {}
        for index, (column, setting) in enumerate(zip(axes.T, settings)):
            for axis, (measure, (label, _)) in zip(column, measures.items()):
                axis.grid(lw=0.4)
                for method in methods or colors:
                    lines = _values(series, setting, method, measure, ends, panels)
                    if any(map(len, lines)):
                        handles[method] = _line(axis, ends, lines, colors[method])
                if not index:
                    axis.set_ylabel(label)
                if in_row or measure == list(measures)[-1]:
                    axis.set_xlabel('round')
            column[0].axhline(0, color=colors[panels.reference], lw=0.8)
            if not in_row:
                column[0].set_title(panels.title(setting), fontsize=9)
        for row, (_, limits) in zip(axes, measures.values()):
            for axis in row:
                axis.set_xlim(0, series.end)
                if limits:
                    axis.set_ylim(limits)
        names = [method for method in colors if method in handles]
        figure.legend(
            [handles[method] for method in names],
            [
                panels.reference_name if method == panels.reference else method
                for method in names
            ],
            loc='outside lower center',
            ncols=len(names) if in_row else 4,
            frameon=False,
        )
        figure.savefig(out, dpi=150)
    return True


def _values(series, setting, method, measure, ends, panels) -> list[np.ndarray]:
    """Return the values of all seeds at the end of each window."""
    relative = measure == next(iter(panels.measures))
    baseline = panels.reference if relative else None
    if method == baseline or method not in series.methods(setting):
        return []
    factor = 100 if measure in panels.percent else 1
    window = ends[0]
    return [
        factor
        * np.array(series.window(setting, method, measure, end, baseline, window))
        for end in ends
    ]


def _line(axis, ends, values, color):
    shown = [(end, own) for end, own in zip(ends, values) if len(own)]
    at = [end for end, _ in shown]
    mean = np.array([own.mean() for _, own in shown])
    if all(len(own) > 1 for _, own in shown):
        half = np.array([confidence_margin(own) for _, own in shown])
        axis.fill_between(at, mean - half, mean + half, color=color, alpha=0.15, lw=0)
    return axis.plot(at, mean, '.-', color=color, lw=1.4, ms=4)[0]


def draw_recoveries(deaths: Sequence[Death], out: Path) -> bool:
    """Draw observed over predicted rounds until dead channels recover.

    Args:
        deaths (list[Death]): Those of all runs.
        out (Path): The PNG to write.

    Returns:
        bool: Whether there was anything to draw.
    """
    recovered = np.array(
        [
            (
                death.predicted - death.died,
                death.recovered - death.died,
                death.simulated - death.died,
                death.collapsed,
            )
            for death in deaths
            if death.recovered
        ]
    ).reshape(-1, 4)
    if not len(recovered):
        return False
    top = recovered[:, :2].max() * 1.5
    slope = recovered[:, 2].sum() / recovered[:, 0].sum()
    jitter = np.random.default_rng(0).uniform(0.85, 1.18, (len(recovered), 2))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 3.9), layout='constrained')
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        for axis, kind, sign in zip(axes, (1, 0), ('<', '≥')):
            own = recovered[:, 3] == kind
            predicted, observed = (recovered[own, :2] * jitter[own]).T
            axis.plot(
                predicted, observed, '.', color=COLORS[0], ms=4, alpha=0.25, mew=0
            )
            for factor, style, label in (
                (1, '-', 'formula'),
                (slope, '--', 'simulated, with the start of momentum'),
            ):
                axis.plot(
                    [0.8, top],
                    [0.8 * factor, top * factor],
                    style,
                    color='black',
                    lw=0.8,
                    label=label,
                )
            axis.set(
                xscale='log',
                yscale='log',
                xlim=(0.8, top),
                ylim=(0.8, top),
                xlabel='predicted rounds',
            )
            axis.set_title(
                f'|gamma / beta| {sign} {COLLAPSED:g} at death ({own.sum()} channels)',
                fontsize=9,
            )
            axis.xaxis.set_major_formatter('{x:g}')
            axis.yaxis.set_major_formatter('{x:g}')
            axis.grid(lw=0.4)
        figure.legend(
            *axes[0].get_legend_handles_labels(),
            ncols=2,
            loc='outside lower center',
            frameon=False,
        )
        axes[0].set_ylabel('observed rounds')
        figure.savefig(out, dpi=150)
    return True
