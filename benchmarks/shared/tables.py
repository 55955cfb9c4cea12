"""Tables and headings of a report."""

import statistics
from itertools import compress
from typing import Dict, List, NamedTuple, Sequence

from .settings import key_of


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table, without columns that are empty."""
    rows = [head, ['---'] * len(head), *lines]
    shown = [any(cells) for cells in zip(*lines)]
    return '\n'.join(f'| {" | ".join(compress(row, shown))} |'
                     for row in rows)


def value_of(value) -> str:
    return f'{value:g}' if isinstance(value, float) else str(value)


def mean_and_spread(values: Sequence[float], digits: int) -> List[str]:
    """Mean, and largest minus smallest."""
    if not values:
        return ['-', '-']
    return [f'{statistics.mean(values):.{digits}f}',
            f'{max(values) - min(values):.{digits}f}']


def heading(title: str, jobs: Sequence[NamedTuple],
            results: Dict[str, dict], versions: str) -> str:
    """What was trained, and how long it took."""
    first = jobs[0]
    seconds = sum(results[key_of(job)]['seconds'] for job in jobs)
    return (f'# {title} on {first.data}\n\n'
            f'{len(jobs)} trainings of {first.epochs} epochs, '
            f'{len({job.seed for job in jobs})} seeds, {seconds / 60:.0f} '
            f'minutes of one core; {versions}.')
