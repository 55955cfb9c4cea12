"""Experiments, and the trainings that they consist of, by their settings.

Settings are named tuples whose first field is the seed.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

from .rows import Rows


class Experiment(NamedTuple):
    """Variants of a recipe, and how they are shown."""

    title: str
    variants: Sequence[dict]
    """What differs from the base recipe."""
    x: str = ''
    """The setting on the x-axis of its figure; empty if it has none."""
    panels: Sequence[str] = ()
    """Settings with a panel for each value."""

    def jobs(self, settings: Callable, seeds: int, epochs: int) -> list[NamedTuple]:
        """List every variant with every seed, seed by seed.

        Args:
            settings (type): The class of the settings.
            seeds (int): The number of seeds.
            epochs (int): The length of a training.
        """
        return [
            settings(seed, epochs=epochs, **variant)
            for seed in range(seeds)
            for variant in self.variants
        ]


class Row(NamedTuple):
    """A variant with its results."""

    settings: NamedTuple
    """Those of seed 0."""
    results: dict[int, NamedTuple]
    """The result of each seed."""

    @property
    def accuracies(self) -> list[float]:
        return [100 * result.accuracy for result in self.results.values()]

    @property
    def diverged(self) -> int:
        return sum(result.diverged for result in self.results.values())


def grid(**axes: Sequence) -> list[dict]:
    """List every combination of the values."""
    return [dict(zip(axes, values)) for values in product(*axes.values())]


def make_rows(experiment: Experiment, rows: Rows, row: Callable = Row) -> list[Row]:
    """List the variants in their order; none if one of them has no result.

    Args:
        experiment (Experiment): The experiment.
        rows (dict): The result of each training; all have the same epochs.
        row (type): The class of the rows.
    """
    found: dict[NamedTuple, dict[int, NamedTuple]] = {}
    for run in sorted(rows):
        found.setdefault(run._replace(seed=0), {})[run.seed] = rows[run][0]
    variants = [
        own
        for run in list(rows)[:1]
        for own in experiment.jobs(type(run), 1, run.epochs)
    ]
    if not found.keys() >= {*variants}:
        return []
    return [row(own, found[own]) for own in variants]


def varied(rows: Sequence[Row], without: Sequence[str]) -> list[str]:
    """List the names of the settings that differ between the rows."""
    return [
        name
        for name in rows[0].settings._fields
        if name not in without
        and len({getattr(row.settings, name) for row in rows}) > 1
    ]


def describe(settings: NamedTuple) -> str:
    """Describe the settings that are not the defaults."""
    return ', '.join(
        f'{name} {value}'
        for name, value in settings._asdict().items()
        if value != settings._field_defaults.get(name)
    )


def panel_of(settings: NamedTuple, panels: Sequence[str]) -> tuple:
    return tuple(getattr(settings, name) for name in panels)
