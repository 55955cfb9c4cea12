"""Figures, as PNG files: accuracy as heat maps, and correlation over depth."""

from pathlib import Path

import numpy as np

from benchmarks.shared.figures import draw_series
from benchmarks.shared.settings import Experiment, panel_of
from mmpsbn.analysis.style import COLOR_OF, figure_file

from .correlation import MEASURES

STYLES = {
    'BN': dict(marker='o'),
    'none': dict(marker='P'),
    # In front, because it is equal to MimicNorm before training.
    'weight mean': dict(marker='', ls='--', zorder=3),
    'MimicNorm': dict(marker='s'),
}
NAMES = {'lr': 'learning rate'}
MOMENTS = {'before': 'before training', 'after': 'after training'}


def draw_heat_maps(rows, experiment: Experiment, title: str, out: Path) -> None:
    """Draw mean accuracy by normalization and setting, one map for each panel.

    Args:
        rows (list[Row]): The variants.
        experiment (Experiment): Their experiment, which has panels.
        title (str): The title, to which the measure is added.
        out (Path): The PNG to write.
    """
    x, panels = experiment.x, experiment.panels
    maps = list(dict.fromkeys(panel_of(row.settings, panels) for row in rows))
    norms = list(dict.fromkeys(row.settings.norm for row in rows))
    values = sorted({getattr(row.settings, x) for row in rows})
    columns = min(3, len(maps))
    lines = -(-len(maps) // columns)
    width, height = 1.2 + 2.1 * columns, 0.4 + (0.5 + 0.26 * len(norms)) * lines
    with figure_file(str(out), width, height) as figure:
        axes = [*figure.subplots(lines, columns, squeeze=False).flat]
        for axis, own in zip(axes, maps):
            means = np.full((len(norms), len(values)), np.nan)
            for row in rows:
                if panel_of(row.settings, panels) == own:
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
            axis.set_title(', depth '.join(map(str, own)))
            axis.set_xticks(range(len(values)), [f'{value:g}' for value in values])
            axis.set_yticks(range(len(norms)), norms)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
            axis.grid(False)
            axis.set_xlabel(NAMES[x])
        for axis in axes[len(maps) :]:
            axis.set_axis_off()
        figure.suptitle(f'{title}: mean test accuracy, %')


def draw_correlations(rows, title: str, out: Path) -> None:
    """Draw every measure over the layers, before and after training.

    Args:
        rows (list[Row]): The variants of one network.
        title (str): The title, to which the name of the network is added.
        out (Path): The PNG to write.
    """
    with figure_file(str(out), 7.5, 6.2) as figure:
        axes = figure.subplots(len(MEASURES), len(MOMENTS), sharex=True, sharey='row')
        for line, (measure, label) in zip(axes, MEASURES.items()):
            for axis, moment in zip(line, MOMENTS):
                for row in rows:
                    layers = zip(*row.layers(measure, moment))
                    draw_series(
                        axis,
                        [(number, list(own)) for number, own in enumerate(layers, 1)],
                        (0, 1),
                        label=row.settings.norm,
                        ms=3.5,
                        color=COLOR_OF[row.settings.norm],
                        **STYLES[row.settings.norm],
                    )
            line[0].set_ylabel(label)
            line[0].set_ylim(bottom=0)
        for axis, words in zip(axes[0], MOMENTS.values()):
            axis.set_title(words)
        for axis in axes[-1]:
            axis.set_xlabel('number of the ReLU')
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc='outside lower center',
            ncols=len(rows),
        )
        settings = rows[0].settings
        figure.suptitle(f'{title}, {settings.network}, depth {settings.depth}')
