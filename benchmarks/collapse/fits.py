"""How the number of collapsed channels grows with a setting."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize

from mmpsbn.statistics.intervals import confidence_margin


class Law(NamedTuple):
    """-ln(1 - p) = factor * x ** exponent, p the share of channels."""

    exponent: float
    factor: float


def fit_law(points: Sequence[tuple[float, int, int]]) -> Law | None:
    r"""Fit the law by maximum likelihood.

    .. math::
        p = 1 - \exp(-c x^k), \quad dead \sim Binomial(channels, p)

    For small p, this is p = c x^k, the law itself; p saturates at 1. Values of x
    without a dead channel count too, which a line through logarithms could not use.

    Args:
        points (list[tuple]): x, dead channels and all channels of each training.

    Returns:
        Law: None if fewer than two values of x have dead channels.
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


def mean_law(laws: Sequence[Law]) -> Law:
    """Average laws: the arithmetic mean of exponents, the geometric of factors."""
    exponents, factors = np.array(laws).T
    return Law(float(exponents.mean()), float(np.exp(np.log(factors).mean())))


def format_exponent(laws: Sequence[Law]) -> str:
    """Format the mean of the seeds' exponents with its 95 % interval."""
    exponents = [law.exponent for law in laws]
    if not exponents:
        return '-'
    mean = np.mean(exponents)
    if len(exponents) < 2:
        return f'{mean:.2f}'
    margin = confidence_margin(exponents)
    return f'{mean:.2f} ({mean - margin:.2f} to {mean + margin:.2f})'
