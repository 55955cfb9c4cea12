"""Numbers, intervals and durations as text, and Markdown tables."""

import statistics
from collections.abc import Sequence
from itertools import compress

from mmpsbn.statistics.intervals import confidence_margin


def format_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table. Columns that are empty are left out."""
    rows = [head, ['---', *['---:'] * (len(head) - 1)], *lines]
    shown = [any(cells) for cells in zip(*lines)]
    return '\n'.join(f'| {" | ".join(compress(row, shown))} |' for row in rows)


def format_lr(lr: float) -> str:
    """Format a learning rate in as few digits as distinguish it from others."""
    text = f'{lr:g}'
    return text if float(text) == lr else repr(lr)


def format_length(length: float) -> str:
    """Format a multiple of the config's schedule."""
    return f'{format_lr(length)} x'


def format_mean(values: Sequence[float]) -> list[str]:
    """Format the mean and, of at least two values, its confidence interval."""
    if not values:
        return ['-', '-']
    mean = statistics.mean(values)
    if len(values) < 2:
        return [f'{mean:.3f}', '-']
    half = confidence_margin(values)
    return [f'{mean:.3f}', format_interval(mean - half, mean + half)]


def format_difference(value: float, digits: int = 3) -> str:
    """Format a difference with its sign, which 0 has as a plus."""
    return f'{round(value, digits) + 0.0:+.{digits}f}'


def format_interval(low: float, high: float) -> str:
    """Format an interval of mAP."""
    return f'{low:.3f} to {high:.3f}'


def format_p(p: float) -> str:
    """Format a p value."""
    return '< 0.001' if p < 0.001 else f'{p:.3f}'


def format_duration(seconds: float) -> str:
    """Format a duration in seconds, minutes, or hours and minutes."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f'{seconds:.0f} s'
    return f'{minutes // 60} h {minutes % 60} min' if minutes > 90 else f'{minutes} min'
