"""Confidence intervals, and differences that are paired by seed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LEVEL = 0.95
ALPHA = 1 - LEVEL
ROUNDING = 1e-9  # Differences that are closer are the same.


class PairedDifference(NamedTuple):
    """The mean difference between two normalizations over common seeds.

    The interval and the p value are None if fewer than two seeds are common, or
    if all seeds have the same difference, which is not 0: mAP is rounded, and a
    variance of 0 would make any difference significant. The mean is None if no
    seed is common.
    """

    seeds: int
    """The number of common seeds."""
    mean: float | None = None
    low: float | None = None
    """The lower end of the 95 % confidence interval (Student's t)."""
    high: float | None = None
    p: float | None = None
    """The p value of the paired t test."""


def confidence_margin(values: ArrayLike) -> np.ndarray:
    """Compute half the width of the 95 % confidence interval of a mean.

    Args:
        values (array): ``(seeds, ...)``, at least two seeds.

    Returns:
        array: ``(...)``, by Student's t distribution.
    """
    return stats.sem(values, axis=0) * stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)


def compare_paired(
    scores: Sequence[float], baseline: Sequence[float]
) -> PairedDifference:
    """Compare the scores of two normalizations by a paired t test.

    Args:
        scores (list[float]): A score for each seed.
        baseline (list[float]): Those of the baseline, of the same seeds.
    """
    number = len(scores)
    if not number:
        return PairedDifference(0)
    differences = np.subtract(scores, baseline)
    mean = float(differences.mean())
    if number < 2:
        return PairedDifference(number, mean)
    if not differences.any():  # The test statistic would be 0 / 0.
        return PairedDifference(number, 0.0, 0.0, 0.0, 1.0)
    if np.ptp(differences) < ROUNDING:
        return PairedDifference(number, mean)
    test = stats.ttest_rel(scores, baseline)
    low, high = test.confidence_interval(LEVEL)
    return PairedDifference(number, mean, float(low), float(high), float(test.pvalue))


def correct_p_values(values: Sequence[float]) -> list[float]:
    """Correct the p values of a family of tests (Holm's step-down method)."""
    values = np.asarray(values, float)
    order = np.argsort(values)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(
        1, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    )
    return corrected.tolist()
