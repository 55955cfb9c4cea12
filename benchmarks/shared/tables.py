"""Values and headings of a report."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmpsbn.files import write_atomically

from .settings import key_of

BEGIN, END = '<!-- results: begin -->', '<!-- results: end -->'


def fill_page(page: Path, text: str) -> None:
    """Write a text between the two marks of a Markdown page."""
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    write_atomically(page, f'{before}{BEGIN}\n\n{text}{END}{after}'.encode())


def write_page(folder: Path, text: str) -> Path:
    """Write a text between the marks of README.md, or to report.md without it.

    Returns:
        Path: The page.
    """
    page = folder / 'README.md'
    if page.exists():
        fill_page(page, f'{text}\n')
    else:
        page = folder / 'report.md'
        write_atomically(page, text.encode())
    return page


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


def format_mean_and_spread(values: Sequence[float], digits: int = 3) -> list[str]:
    """Format the mean, and the difference of largest and smallest value."""
    if not values:
        return ['-', '-']
    spread = max(values) - min(values)
    return [f'{statistics.mean(values):.{digits}f}', f'{spread:.{digits}f}']
