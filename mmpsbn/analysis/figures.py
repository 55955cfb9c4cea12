"""Figures of filter collapse, as PNG files."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import norm as normal

from mmpsbn.analysis.collapse import LEAST_PROBABILITY
from mmpsbn.analysis.report import Layer, dead_shares
from mmpsbn.analysis.rounds import IMAGES, PARAMETERS, Change
from mmpsbn.analysis.style import COLORS, STYLE


def draw_layers(results: dict[str, list[Layer]], out: str) -> None:
    """The share of dead channels of each layer, as bars.

    Nothing is drawn if no layer was judged in any checkpoint.

    Args:
        results (dict): For each checkpoint its layers.
        out (str): The PNG to write.
    """
    # A mask head, for example, is judged only where something was detected.
    judged = {
        layer.name: layer
        for layers in results.values()
        for layer in layers
        if layer.judged
    }
    names = [
        layer.name for layer in next(iter(results.values())) if layer.name in judged
    ]
    if not names:
        return
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(6.5, 1.2 + 0.14 * len(names) * len(results)), layout='constrained'
        )
        axis = figure.subplots()
        height = 0.8 / len(results)
        for index, (checkpoint, layers) in enumerate(results.items()):
            values = dead_shares([x for x in layers if x.name in judged])
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
        figure.legend(loc='outside upper left', frameon=False, fontsize=8)
        figure.savefig(out, dpi=150)


def draw_plane(layers: Sequence[Layer], title: str, out: str) -> None:
    """Every channel by its gamma and applied shift, over the dead region.

    Args:
        layers (list[Layer]): Of a checkpoint; those that a ReLU follows
            without a sum before it are drawn.
        title (str): Of the figure.
        out (str): The PNG to write.
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
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.5, 4), layout='constrained')
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
        for mask, colour, marker, label in (
            (~dead, COLORS[0], 'o', 'alive'),
            (dead, COLORS[5], 'x', 'dead on the images'),
        ):
            axis.scatter(
                gamma[mask],
                shift[mask],
                s=12,
                c=colour,
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
        figure.legend(loc='outside lower center', ncols=3, frameon=False)
        figure.savefig(out, dpi=150)


def draw_history(
    iterations: Sequence[int], shares: Sequence[dict[str, float]], out: str
) -> None:
    """The shares of dead channels of a training run, by stage.

    Args:
        iterations (list[int]): Of the measurements.
        shares (list[dict]): For each, what
            :func:`mmpsbn.hooks.filter_collapse_hook.shares` gives.
        out (str): The PNG to write.
    """
    names = list(dict.fromkeys(name for line in shares for name in line))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6, 3.4), layout='constrained')
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
        figure.legend(loc='outside right upper', frameon=False, fontsize=8)
        figure.savefig(out, dpi=150)


def draw_rounds(
    by: dict[str, list[Change]],
    histories: dict[int, Sequence[tuple[float, float]]],
    out: str,
) -> None:
    """The shares of dead, newly dead and recovered channels by round.

    Args:
        by (dict): For each judge what :func:`~.rounds.changes` returns.
        histories (dict): For rounds, counted from 1, what was measured while
            they trained: points of a part of the round and a share.
        out (str): The PNG to write.
    """
    titles = {
        PARAMETERS: f'by parameters, P(y > 0) < {LEAST_PROBABILITY:.0e}',
        IMAGES: 'on the images',
    }
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(by) + 0.6, 3.4), layout='constrained')
        axes = figure.subplots(1, len(by), sharey=True, squeeze=False)[0]
        for axis, (judge, judged) in zip(axes, by.items()):
            number = np.arange(len(judged)) + 1

            def percent(values):
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
            *axes[-1].get_legend_handles_labels(),
            loc='outside lower center',
            ncols=4,
            frameon=False,
        )
        figure.savefig(out, dpi=150)
