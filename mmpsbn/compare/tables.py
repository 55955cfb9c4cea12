"""What the tables of a report are made of."""

import statistics
from itertools import compress
from typing import List, Sequence


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table, without columns that are empty."""
    rows = [head, ['---', *['---:'] * (len(head) - 1)], *lines]
    shown = [any(cells) for cells in zip(*lines)]
    return '\n'.join(f'| {" | ".join(compress(row, shown))} |'
                     for row in rows)


def in_digits(lr: float) -> str:
    """Write a learning rate in as few digits as tell it from others."""
    text = f'{lr:g}'
    return text if float(text) == lr else repr(lr)


def mean_and_spread(values: Sequence[float], digits: int = 3) -> List[str]:
    """Mean, and largest minus smallest."""
    if not values:
        return ['-', '-']
    return [f'{statistics.mean(values):.{digits}f}',
            f'{max(values) - min(values):.{digits}f}']
