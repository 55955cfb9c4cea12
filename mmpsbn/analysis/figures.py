"""Figures of filter collapse, as PNG files."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm as normal

from mmpsbn.analysis.collapse import LEAST_PROBABILITY
from mmpsbn.analysis.report import Layer, dead_shares
from mmpsbn.analysis.rounds import IMAGES, PARAMETERS, Change
from mmpsbn.analysis.style import COLORS, figure_file


def draw_layers(results: dict[str, list[Layer]], out: str) -> None:
    """Draw the share of dead channels in each layer as bars.

    The function writes no file if no layer was judged in any checkpoint.

    Args:
        results (dict[str, list[Layer]]): The layers of each checkpoint.
        out (str): The PNG file.
    """
    # A mask head, for example, is judged only if it has detections.
    judged = {
        layer.name: layer
        for layers in results.values()
        for layer in layers
        if layer.judged
    }
    # One checkpoint may be of a backbone, and another of the whole detector.
    names = list(judged)
    if not names:
        return
    with figure_file(out, 6.5, 1.2 + 0.14 * len(names) * len(results)) as figure:
        axis = figure.subplots()
        height = 0.8 / len(results)
        for index, (checkpoint, layers) in enumerate(results.items()):
            shares = dict(zip([x.name for x in layers], dead_shares(layers)))
            values = np.array([shares.get(name, np.nan) for name in names])
            axis.barh(
                np.arange(len(names)) + (index + 0.5) * height - 0.4,
                100 * values,
                height,
                color=COLORS[index % len(COLORS)],
                label=checkpoint,
            )
        axis.set_yticks(
            range(len(names)),
            [f'{name} (sum)' if judged[name].after_sum else name for name in names],
            fontsize=7,
        )
        axis.set_ylim(len(names) - 0.5, -0.5)
        top = max(np.nanmax(dead_shares(x), initial=0) for x in results.values())
        axis.set_xlim(0, max(1, 105 * top))
        axis.set_xlabel('dead channels, % of the layer')
        axis.grid(False, axis='y')
        figure.legend(loc='outside upper left', fontsize=8)


def draw_plane(layers: Sequence[Layer], title: str, out: str) -> None:
    """Draw each channel as a point at its gamma and its applied shift.

    The figure also has the region in which the parameters are those of dead
    channels. The function writes no file if it has no channel to draw.

    Args:
        layers (list[Layer]): The layers of a checkpoint. Those that a ReLU
            follows without a sum in between are drawn.
        title (str): The title of the figure.
        out (str): The PNG file.
    """
    points = [
        (gamma, shift, channel in set(layer.dead))
        for layer in layers
        if layer.judged and not layer.after_sum
        for channel, (gamma, shift) in enumerate(zip(layer.gamma, layer.shift))
    ]
    if not points:
        return
    gamma, shift, dead = map(np.array, zip(*points))
    with figure_file(out, 5.5, 4) as figure:
        axis = figure.subplots()
        x_limit = 1.1 * max(1e-3, abs(gamma).max())
        low, high = min(0, shift.min()), max(0, shift.max())
        margin = 0.08 * max(1e-3, high - low)
        x = np.linspace(-x_limit, x_limit, 201)
        bound = normal.ppf(LEAST_PROBABILITY) * abs(x)
        axis.fill_between(
            x,
            np.maximum(bound, low - margin),
            low - margin,
            color='#D9D9D9',
            lw=0,
            label=f'P(y > 0) < {LEAST_PROBABILITY:.0e}',
        )
        for mask, color, marker, label in (
            (~dead, COLORS[0], 'o', 'alive'),
            (dead, COLORS[5], 'x', 'dead on the images'),
        ):
            axis.scatter(
                gamma[mask],
                shift[mask],
                s=12,
                c=color,
                marker=marker,
                alpha=0.7,
                lw=0.8,
                label=f'{label}: {mask.sum()}',
            )
        axis.axhline(0, color='#808080', lw=0.6)
        axis.axvline(0, color='#808080', lw=0.6)
        axis.set_xlim(-x_limit if gamma.min() < 0 else -0.05 * x_limit, x_limit)
        axis.set_ylim(low - margin, high + margin)
        axis.set(xlabel='gamma', ylabel='applied shift', title=title)
        figure.legend(loc='outside lower center', ncols=3)


def draw_history(
    iterations: Sequence[int], shares: Sequence[dict[str, float]], out: str
) -> None:
    """Draw the shares of dead channels in the stages during a training.

    Args:
        iterations (list[int]): The iteration of each measurement.
        shares (list[dict[str, float]]): For each measurement, the result of
            :func:`mmpsbn.hooks.filter_collapse_hook.shares`.
        out (str): The PNG file.
    """
    names = list(dict.fromkeys(name for line in shares for name in line))
    with figure_file(out, 6, 3.4) as figure:
        axis = figure.subplots()
        for index, name in enumerate(names):
            axis.plot(
                iterations,
                [100 * line.get(name, np.nan) for line in shares],
                color='#000000' if name == 'dead' else COLORS[index % len(COLORS)],
                lw=2 if name == 'dead' else 1.2,
                ls='--' if name == 'dead_after_sum' else '-',
                marker='.',
                label={'dead': 'all', 'dead_after_sum': 'all, after sums'}.get(
                    name, name
                ),
            )
        axis.set(xlabel='iteration', ylabel='dead channels, %')
        axis.set_ylim(bottom=0)
        figure.legend(loc='outside right upper', fontsize=8)


def draw_rounds(
    by: dict[str, list[Change]],
    histories: dict[int, Sequence[tuple[float, float]]],
    out: str,
) -> None:
    """Draw the shares of dead, newly dead and recovered channels by round.

    Args:
        by (dict[str, list[Change]]): For each judge, the result of
            :func:`~.rounds.changes`.
        histories (dict[int, list[tuple[float, float]]]): The measurements
            during the training of rounds, which are counted from 1. Each is
            the completed part of the round and the share of dead channels.
        out (str): The PNG file.
    """
    titles = {
        PARAMETERS: f'by parameters, P(y > 0) < {LEAST_PROBABILITY:.0e}',
        IMAGES: 'on the images',
    }
    with figure_file(out, 3.6 * len(by) + 0.6, 3.4) as figure:
        axes = figure.subplots(1, len(by), sharey=True, squeeze=False)[0]
        for axis, (judge, judged) in zip(axes, by.items()):
            number = np.arange(len(judged)) + 1

            def percent(values: Sequence[int | None]) -> list[float]:
                return [
                    100 * (value or 0) / max(1, change.channels)
                    for value, change in zip(values, judged)
                ]

            axis.bar(
                number,
                percent([x.newly_dead for x in judged]),
                color=COLORS[5],
                alpha=0.6,
                label='newly dead',
            )
            axis.bar(
                number,
                percent([-(x.recovered or 0) for x in judged]),
                color=COLORS[2],
                alpha=0.6,
                label='recovered',
            )
            axis.plot(
                number,
                percent([x.dead for x in judged]),
                color='#000000',
                marker='.',
                lw=2,
                label='dead',
            )
            for start, points in histories.items() if judge == IMAGES else ():
                axis.plot(
                    *zip(*[(start - 1 + part, 100 * share) for part, share in points]),
                    color=COLORS[6],
                    lw=1,
                    label='dead, in training' if start == min(histories) else None,
                )
            axis.axhline(0, color='#808080', lw=0.6)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set(xlabel='round', title=titles[judge])
        axes[0].set_ylabel('channels, %')
        figure.legend(
            *axes[-1].get_legend_handles_labels(), loc='outside lower center', ncols=4
        )
