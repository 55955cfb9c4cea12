"""Figures of the studies, as PNG files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.ticker import FixedLocator, MaxNLocator

from benchmarks.shared.figures import draw_series
from benchmarks.shared.series import Series
from mmpsbn.analysis.style import COLOR_OF, figure_file

from .recovery import COLLAPSED, Death
from .studies import METHODS, SCRATCH


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
    methods: Sequence[str]
    """All methods, in the order of the legend. The reference is not one of them."""
    title: Callable[[NamedTuple], str]
    """Names a setting."""


PANELS = Panels(
    {
        'accuracy': ('accuracy minus\nthat from scratch', None),
        'dead': ('dead channels, %', (0, 100)),
        'rank': ('effective rank', (0, None)),
        'norm': ('weight norm', (0, None)),
    },
    frozenset(['dead']),
    SCRATCH,
    'from scratch',
    METHODS,
    lambda setting: f'learning rate {setting.lr:g}',
)
# What the figure of two methods shows.
SHORT = PANELS._replace(
    measures={name: PANELS.measures[name] for name in ('accuracy', 'dead', 'rank')}
)


def draw_rounds(
    series: Series,
    settings: Sequence,
    window: int,
    out: Path,
    title: str,
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
        title (str): The title.
        methods (list[str]): The methods to draw next to the reference. Defaults to
            all.
        panels (Panels): The measures, methods and titles.

    Returns:
        bool: Whether there was anything to draw.
    """
    settings = sorted(setting for setting in settings if series.methods(setting))
    ends = range(window, series.end + 1, window)
    if not settings or not ends:
        return False
    measures = panels.measures
    names = {
        **{method: method for method in methods or panels.methods},
        panels.reference: panels.reference_name,
    }
    shape = (len(measures), len(settings))
    in_row = len(settings) == 1
    size = (
        (7.5, 2.8)
        if in_row
        else (min(6.5, 1.6 + 2.6 * len(settings)), 2 * len(measures))
    )
    with figure_file(str(out), *size) as figure:
        if in_row:
            axes = figure.subplots(*shape[::-1], squeeze=False).T
        else:
            axes = figure.subplots(*shape, sharex=True, sharey='row', squeeze=False)
        handles = {}
        for index, (column, setting) in enumerate(zip(axes.T, settings)):
            for axis, (measure, (label, _)) in zip(column, measures.items()):
                for method, name in names.items():
                    lines = _values(series, setting, method, measure, ends, panels)
                    if any(lines):
                        handles[name] = draw_series(
                            axis,
                            list(zip(ends, lines)),
                            (-np.inf, np.inf),
                            color=COLOR_OF[name],
                            marker='.',
                            lw=1.4,
                            ms=4,
                        )
                if not index:
                    axis.set_ylabel(label)
                if in_row or measure == list(measures)[-1]:
                    axis.set_xlabel('round')
            column[0].axhline(0, color=COLOR_OF[panels.reference_name], lw=0.8)
            if not in_row:
                column[0].set_title(panels.title(setting))
        for row, (_, limits) in zip(axes, measures.values()):
            for axis in row:
                axis.set_xlim(0, series.end)
                axis.xaxis.set_major_locator(MaxNLocator(3, integer=True))
                if limits:
                    axis.set_ylim(limits)
        shown = [name for name in names.values() if name in handles]
        figure.legend(
            [handles[name] for name in shown],
            shown,
            loc='outside lower center',
            ncols=len(shown) if in_row else 4,
        )
        figure.suptitle(title)
    return True


def _values(series, setting, method, measure, ends, panels) -> list[list[float]]:
    """Return the values of all seeds at the end of each window."""
    relative = measure == next(iter(panels.measures))
    baseline = panels.reference if relative else None
    if method == baseline or method not in series.methods(setting):
        return []
    factor = 100 if measure in panels.percent else 1
    window = ends[0]
    return [
        [
            factor * value
            for value in series.window(setting, method, measure, end, baseline, window)
        ]
        for end in ends
    ]


def draw_recoveries(deaths: Sequence[Death], title: str, out: Path) -> bool:
    """Draw observed over predicted rounds until dead channels recover.

    Args:
        deaths (list[Death]): Those of all runs.
        title (str): The title.
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
    with figure_file(str(out), 6.5, 3.8) as figure:
        axes = figure.subplots(1, 2, sharex=True, sharey=True)
        for axis, kind, sign in zip(axes, (1, 0), ('<', '≥')):
            own = recovered[:, 3] == kind
            predicted, observed = (recovered[own, :2] * jitter[own]).T
            points = dict(color=COLOR_OF['psBN'], ms=4, alpha=0.25, mew=0)
            axis.plot(predicted, observed, '.', **points)
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
                xlabel='predicted rounds until recovery',
                title=f'|gamma / beta| {sign} {COLLAPSED:g} at death\n'
                f'({own.sum()} channels)',
            )
            for side in (axis.xaxis, axis.yaxis):
                side.set_major_locator(FixedLocator([1, 3, 10, 30]))
                side.set_major_formatter('{x:g}')
        figure.legend(
            *axes[0].get_legend_handles_labels(), ncols=2, loc='outside lower center'
        )
        axes[0].set_ylabel('observed rounds until recovery')
        figure.suptitle(title)
    return True
