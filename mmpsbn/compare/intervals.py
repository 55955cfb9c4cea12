"""Confidence intervals, and differences that are paired by seed.

The statistics are those of scipy, which is imported when they are needed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmpsbn.errors import InputError

LEVEL = 0.95
ALPHA = 1 - LEVEL


class Paired(NamedTuple):
    """The mean difference between two normalizations over common seeds.

    Margin and p are None where fewer than two seeds are common, and so is the
    mean where none is.
    """

    seeds: int
    mean: float | None = None
    low: float | None = None
    """The lower end of the 95 % confidence interval (Student's t)."""
    high: float | None = None
    p: float | None = None
    """The p value of the paired t test."""


def scipy_stats():
    """Import ``scipy.stats``.

    Raises:
        InputError: If scipy is not installed.
    """
    try:
        from scipy import stats
    except ModuleNotFoundError as error:
        if error.name.split('.')[0] != 'scipy':
            raise
        raise InputError(
            'scipy is not installed, and the confidence intervals of a '
            'comparison come from it. Install it with pip install scipy.'
        ) from error
    return stats


def margin(values):
    """Compute half the width of the 95 % confidence interval of a mean.

    Args:
        values (array): At least two values, or rows of values.

    Returns:
        A number, or one for each column.
    """
    stats = scipy_stats()
    return stats.sem(values, axis=0) * stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)


def paired(scores: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compare two normalizations, whose scores are in the order of seeds."""
    number = len(scores)
    if not number:
        return Paired(0)
    differences = np.subtract(scores, baseline)
    mean = float(differences.mean())
    if number < 2:
        return Paired(number, mean)
    if not differences.any():  # The test statistic would be 0 / 0.
        return Paired(number, 0.0, 0.0, 0.0, 1.0)
    test = scipy_stats().ttest_rel(scores, baseline)
    low, high = test.confidence_interval(LEVEL)
    return Paired(number, mean, float(low), float(high), float(test.pvalue))


def holm(values: Sequence[float]) -> list[float]:
    """Correct the p values of a family of tests (Holm's step-down method)."""
    values = np.asarray(values, float)
    order = np.argsort(values)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(
        1, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    )
    return corrected.tolist()
