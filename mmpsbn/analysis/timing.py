"""Wall-clock times of actions, measured in alternation."""

import random
import statistics
import time
from collections.abc import Callable, Hashable
from typing import TypeVar

import torch

Name = TypeVar('Name', bound=Hashable)


def time_alternately(
    actions: dict[Name, Callable], rounds: int
) -> dict[Name, list[float]]:
    """Measure how long actions take, in alternation.

    Each round runs all actions once, in a random order. The first round is a
    warm-up and does not count.

    Args:
        actions (dict): The function of each action, by its name.
        rounds (int): The number of rounds that count.

    Returns:
        dict: For each name, the seconds of each round. Ratios are best taken
        within a round.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in actions}
    order = random.Random(0)
    for _ in range(1 + rounds):
        for name in order.sample(list(actions), len(actions)):
            _synchronize()
            start = time.perf_counter()
            actions[name]()
            _synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: own[1:] for name, own in seconds.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratios(seconds: dict[Name, list[float]]) -> dict[Name, float]:
    """Return the median time of each action relative to the first one.

    Args:
        seconds (dict): The result of :func:`time_alternately`.

    Returns:
        dict: For each name, the median over the rounds of the ratio of its
        seconds to those of the first name.
    """
    first = next(iter(seconds.values()))
    return {
        name: statistics.median(a / b for a, b in zip(own, first))
        for name, own in seconds.items()
    }
