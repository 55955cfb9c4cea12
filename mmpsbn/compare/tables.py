"""What the tables of a report are made of."""

import statistics
from collections.abc import Sequence
from itertools import compress

from mmpsbn.compare.intervals import margin


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table, without columns that are empty."""
    rows = [head, ['---', *['---:'] * (len(head) - 1)], *lines]
    shown = [any(cells) for cells in zip(*lines)]
    return '\n'.join(f'| {" | ".join(compress(row, shown))} |' for row in rows)


def format_lr(lr: float) -> str:
    """Write a learning rate in as few digits as tell it from others."""
    text = f'{lr:g}'
    return text if float(text) == lr else repr(lr)


def mean_and_spread(values: Sequence[float], digits: int = 3) -> list[str]:
    """Mean, and largest minus smallest."""
    if not values:
        return ['-', '-']
    return [
        f'{statistics.mean(values):.{digits}f}',
        f'{max(values) - min(values):.{digits}f}',
    ]


def format_mean(values: Sequence[float]) -> list[str]:
    """Mean, and 95 % confidence interval where there are two values."""
    if not values:
        return ['-', '-']
    mean = statistics.mean(values)
    return [
        f'{mean:.3f}',
        format_interval(mean - margin(values), mean + margin(values))
        if len(values) > 1
        else '-',
    ]


def format_interval(low: float, high: float) -> str:
    """Write an interval."""
    return f'{low:.3f} to {high:.3f}'


def format_p(p: float) -> str:
    """Write a p value."""
    return '< 0.001' if p < 0.001 else f'{p:.3f}'


def times(length: float) -> str:
    """Write a multiple of the config's schedule."""
    return f'{format_lr(length)} x'
