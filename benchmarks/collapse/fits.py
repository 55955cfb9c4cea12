"""How the number of collapsed channels grows with a setting."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean over seeds with Student's interval; NaN for a single seed."""

    mean: float
    low: float
    high: float


class Law(NamedTuple):
    """-ln(1 - p) = factor * x ** exponent, p the share of channels."""

    exponent: float
    factor: float


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of independent values."""
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Estimate(mean, np.nan, np.nan)
    half = (
        stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
        * np.std(values, ddof=1)
        / count**0.5
    )
    return Estimate(mean, mean - half, mean + half)


def fit_law(points: Sequence[tuple[float, int, int]]) -> Law | None:
    r"""The law of the greatest likelihood.

    .. math::
        p = 1 - \exp(-c x^k), \quad dead \sim Binomial(channels, p)

    For few channels p is c x^k, the law itself; for many it saturates at 1,
    as a share has to. Values of x without a dead channel count too, which a
    line through logarithms could not take.

    Args:
        points (list[tuple]): For every training x, dead and all channels.

    Returns:
        Law: None if less than two values of x have dead channels.
    """
    x, dead, channels = np.array(points, float).reshape(-1, 3).T
    if len(set(x[dead > 0])) < 2:
        return None
    center = np.log(x).mean()

    def loss(parameters):
        exponent, level = parameters
        log_rate = np.clip(level + exponent * (np.log(x) - center), -50, 5)
        rate = np.exp(log_rate)
        return -(dead * np.log(-np.expm1(-rate)) - (channels - dead) * rate).sum()

    share = dead.sum() / channels.sum()
    exponent, level = optimize.minimize(
        loss,
        [0.0, np.log(-np.log1p(-min(share, 0.99)))],
        method='Nelder-Mead',
        options=dict(maxiter=2000),
    ).x
    return Law(exponent, float(np.exp(level - exponent * center)))


def exponents(by_seed: Sequence[list[tuple]]) -> list[float]:
    """Of each seed's own fit; seeds that allow none are left out."""
    laws = [fit_law(points) for points in by_seed if points]
    return [law.exponent for law in laws if law]
