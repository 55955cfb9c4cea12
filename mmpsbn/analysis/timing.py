"""Time, measured side by side."""

import random
import statistics
import time
from collections.abc import Callable, Hashable

import torch


def time_alternately(
    actions: dict[Hashable, Callable], rounds: int
) -> dict[Hashable, list[float]]:
    """Seconds that actions take, by time_alternately, in each of some rounds.

    Each round has its own random order of the actions. A first round is not
    counted.

    Args:
        actions (dict): What to time.
        rounds (int): How many to count.

    Returns:
        dict: For each action its seconds, a round after the other, so that
        ratios can be taken within a round.
    """
    seconds = {name: [] for name in actions}
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


def ratios(seconds: dict[Hashable, list[float]]) -> dict[Hashable, float]:
    """Of each action's seconds over the first one's, the median of rounds."""
    first = next(iter(seconds.values()))
    return {
        name: statistics.median(a / b for a, b in zip(own, first))
        for name, own in seconds.items()
    }
