"""Lines with intervals, and axes."""

from collections.abc import Sequence

import numpy as np
from matplotlib.lines import Line2D

from mmpsbn.statistics.intervals import confidence_margin


def draw_series(
    axis, points: Sequence[tuple[float, list[float]]], bounds: tuple, **style
) -> Line2D:
    """Draw a line of means with their 95 % confidence intervals.

    Args:
        axis (matplotlib.axes.Axes): The axes.
        points (list[tuple]): For each x the values of the seeds.
        bounds (tuple): The least and the largest possible value.
        style: Arguments of ``axis.plot``.
    """
    points = [(x, values) for x, values in points if values]
    at = [x for x, _ in points]
    means = np.array([np.mean(values) for _, values in points])
    (line,) = axis.plot(at, means, **style)
    if all(len(values) > 1 for _, values in points):
        margins = np.array([confidence_margin(values) for _, values in points])
        axis.fill_between(
            at,
            np.clip(means - margins, *bounds),
            np.clip(means + margins, *bounds),
            color=line.get_color(),
            alpha=0.15,
            lw=0,
        )
    return line


def by_logarithm(axis, values: Sequence[float]) -> None:
    """Put a tick at each value of a logarithmic x-axis, with a label.

    The labels are vertical if two values are close to each other.
    """
    crowded = any(high < 1.9 * low for low, high in zip(values, values[1:]))
    axis.set_xscale('log')
    labels = [f'{value:g}' for value in values]
    axis.set_xticks(values, labels, rotation=90 if crowded else 0)
    axis.minorticks_off()
