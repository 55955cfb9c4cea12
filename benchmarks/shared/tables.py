"""Values and headings of a report."""

from collections.abc import Sequence
from typing import NamedTuple

from .settings import key_of


def value_of(value) -> str:
    return f'{value:g}' if isinstance(value, float) else str(value)


def heading(
    title: str, jobs: Sequence[NamedTuple], results: dict[str, dict], versions: str
) -> str:
    """What was trained, and how long it took."""
    first = jobs[0]
    seconds = sum(results[key_of(job)]['seconds'] for job in jobs)
    return (
        f'# {title} on {first.data}\n\n'
        f'{len(jobs)} trainings of {first.epochs} epochs, '
        f'{len({job.seed for job in jobs})} seeds, {seconds / 60:.0f} '
        f'minutes of one core; {versions}.'
    )
