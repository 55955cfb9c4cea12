"""Values and headings of a report."""

import statistics
from collections.abc import Sequence

from mmpsbn.statistics.intervals import confidence_margin

from .command import Study
from .rows import Rows

TITLES = dict(digits='Digits', cifar10='CIFAR-10')


def value_of(value) -> str:
    return f'{value:g}' if isinstance(value, float) else str(value)


def heading(study: Study, data: str, rows: Rows) -> str:
    """Say what was trained on a data set, what is missing, and how long it took."""
    seconds = sum(result.seconds for (result,) in rows.values())
    epochs = next(iter(rows)).epochs
    missing = len(set(study.jobs(data, study.seeds[data], epochs)) - set(rows))
    return (
        f'### {TITLES[data]}\n\n'
        f'{len(rows)} trainings of {epochs} epochs with '
        f'{len({run.seed for run in rows})} seeds took {seconds / 60:.0f} minutes of '
        'CPU time.' + f' {missing} trainings are missing.' * bool(missing)
    )


def format_mean(values: Sequence[float], digits: int, sign: str = '') -> str:
    """Format the mean with half of its 95 % confidence interval.

    Args:
        values (list[float]): The values of the seeds.
        digits (int): The number of decimal places.
        sign (str): ``'+'`` for a sign of positive means, too.
    """
    if not values:
        return '-'
    text = f'{statistics.mean(values):{sign}.{digits}f}'
    if len(values) > 1:
        text += f' ± {confidence_margin(values):.{digits}f}'
    return text
