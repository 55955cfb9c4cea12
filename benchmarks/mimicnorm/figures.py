"""Figures, as PNG files: accuracy over a setting, correlation over depth."""

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from benchmarks.shared.figures import draw_series, draw_variants
from mmpsbn.analysis.style import COLORS, STYLE

from .correlation import MEASURES

STYLES = {
    'BN': (COLORS[0], 'o'),
    'GN': (COLORS[2], '^'),
    'none': (COLORS[6], 'P'),
    'weight mean': (COLORS[1], 'v'),
    'last BN': (COLORS[3], 'D'),
    'MimicNorm': (COLORS[5], 's'),
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
