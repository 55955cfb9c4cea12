"""Figures, as PNG files: accuracy by setting, correlation over depth."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.shared.figures import draw_series, draw_variants
from benchmarks.shared.settings import panel_of
from mmpsbn.analysis.style import COLOR_OF, COLORS, STYLE, figure_file

from .correlation import MEASURES

STYLES = {
    'BN': (COLOR_OF['BN'], 'o'),
    'GN': (COLOR_OF['GN'], '^'),
    'none': (COLORS[6], 'P'),
    'weight mean': (COLORS[1], 'v'),
    'last BN': (COLORS[5], 'D'),
    'MimicNorm': (COLOR_OF['MimicNorm'], 's'),
}
NAMES = {'lr': 'learning rate', 'batch': 'images of a batch'}
MOMENTS = {'before': 'at the start', 'after': 'after training'}


def draw_accuracies(rows, x: str, panels: Sequence[str], out: str) -> None:
    """Accuracy of every normalization.

    Args:
        rows (list[Row]): Of an experiment.
        x (str): The setting to the right.
        panels (list[str]): Settings with a panel for each value.
        out (str): The PNG to write.
    """
    draw_variants(
        rows,
        x,
        panels,
        {'test accuracy, %': lambda row: row.accuracies},
        lambda row: row.settings.norm,
        STYLES,
        NAMES,
        out,
    )


def draw_heat_maps(rows, x: str, panels: Sequence[str], out: str) -> None:
    """Mean accuracy by normalization and setting, one map for each panel.

    Args:
        rows (list[Row]): Of an experiment.
        x (str): The setting of the columns.
        panels (list[str]): Settings with a map for each value.
        out (str): The PNG to write.
    """
    maps = list(dict.fromkeys(panel_of(row.settings, panels) for row in rows))
    norms = list(dict.fromkeys(row.settings.norm for row in rows))
    values = sorted({getattr(row.settings, x) for row in rows})
    columns = min(3, len(maps))
    lines = -(-len(maps) // columns)
    width, height = 1.2 + 2.1 * columns, 0.4 + (0.5 + 0.26 * len(norms)) * lines
    with figure_file(out, width, height) as figure:
        axes = [*figure.subplots(lines, columns, squeeze=False).flat]
        for axis, own in zip(axes, maps):
            means = np.full((len(norms), len(values)), np.nan)
            for row in rows:
                if panel_of(row.settings, panels) == own and row.accuracies:
                    place = norms.index(row.settings.norm)
                    column = values.index(getattr(row.settings, x))
                    means[place, column] = np.mean(row.accuracies)
            axis.imshow(means, cmap='cividis', vmin=0, vmax=100, aspect='auto')
            for (place, column), mean in np.ndenumerate(means):
                axis.text(
                    column,
                    place,
                    '-' if np.isnan(mean) else f'{mean:.1f}',
                    ha='center',
                    va='center',
                    fontsize=8,
                    color='black' if mean > 60 else 'white',
                )
            axis.set_title(', depth '.join(map(str, own)), fontsize=9)
            axis.set_xticks(range(len(values)), [f'{value:g}' for value in values])
            axis.set_yticks(range(len(norms)), norms)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            axis.set_xlabel(NAMES.get(x, x))
        for axis in axes[len(maps) :]:
            axis.set_axis_off()
        figure.suptitle('Mean test accuracy, %', fontsize=9)


def draw_correlations(rows, out: str) -> None:
    """Every measure over the layers: seeds as points, mean and range.

    Args:
        rows (list[Row]): Of one network.
        out (str): The PNG to write.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 5.5), layout='constrained')
        axes = figure.subplots(len(MEASURES), len(MOMENTS), sharex=True, sharey='row')
        for line, (measure, label) in zip(axes, MEASURES.items()):
            for axis, moment in zip(line, MOMENTS):
                for row in rows:
                    layers = by_layer(row, moment, measure)
                    norm = row.settings.norm
                    draw_series(axis, list(enumerate(layers, 1)), norm, *STYLES[norm])
            line[0].set_ylabel(label)
            line[0].set_ylim(0, 1)
        for axis, title in zip(axes[0], MOMENTS.values()):
            axis.set_title(title, fontsize=9)
        for axis in axes[-1]:
            axis.set_xlabel('ReLU, from the first')
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc='outside upper right', ncols=len(labels), frameon=False
        )
        figure.savefig(out, dpi=150)


def by_layer(row, moment: str, measure: str) -> list:
    """For every ReLU the values of the seeds; diverged ones have none."""
    found = [result[moment][measure] for result in row.results if result[moment]]
    return [[value for value in values if value is not None] for values in zip(*found)]
