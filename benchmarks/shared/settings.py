"""Trainings by their settings, which are named tuples with a seed.

The tuple may have another under ``start``: the training that its weights come
from.
"""

import json
from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple


class Experiment(NamedTuple):
    """Some variants, and how they are shown."""

    title: str
    variants: Sequence[dict]
    """What differs from the base recipe."""
    x: str
    """The setting that a figure has to the right."""
    panels: Sequence[str] = ()
    """Settings with a panel for each value."""

    def jobs(self, make: Callable, seeds: int, **base) -> list[NamedTuple]:
        """Every variant with every seed, seed by seed.

        Args:
            make (callable): Settings of a seed, a base recipe and a variant.
            seeds (int): How many.
            base: Settings of all variants that have no others.
        """
        return [
            make(seed, base, variant)
            for seed in range(seeds)
            for variant in self.variants
        ]


class Row(NamedTuple):
    """A variant with its results, one for each seed."""

    settings: NamedTuple
    """Of the first seed."""
    results: list[dict]

    @property
    def accuracies(self) -> list[float]:
        return [100 * result['accuracy'] for result in self.results]

    @property
    def diverged(self) -> int:
        return sum(result['diverged'] for result in self.results)


def grid(**axes: Sequence) -> list[dict]:
    """Every combination of the values."""
    return [dict(zip(axes, values)) for values in product(*axes.values())]


def tree_of(settings: NamedTuple) -> dict:
    """Settings as JSON has them."""
    return {
        name: tree_of(value) if hasattr(value, '_asdict') else value
        for name, value in settings._asdict().items()
    }


def key_of(settings: NamedTuple) -> str:
    """What the result of a training is found by."""
    return json.dumps(tree_of(settings), sort_keys=True)


def make_rows(
    jobs: Sequence[NamedTuple], results: dict[str, dict], row: Callable = Row
) -> list[Row]:
    """Variants in their order, with the results of all seeds."""
    rows: dict[str, Row] = {}
    for job in jobs:
        variant = _of_first_seed(job)
        own = rows.setdefault(key_of(variant), row(variant, []))
        own.results.append(results[key_of(job)])
    return list(rows.values())


def _of_first_seed(settings: NamedTuple) -> NamedTuple:
    start = getattr(settings, 'start', None)
    more = dict(start=_of_first_seed(start)) if start else {}
    return settings._replace(seed=0, **more)


def varied(rows: Sequence[Row], without: Sequence[str]) -> list[str]:
    """Names of the settings that differ between the rows."""
    return [
        name
        for name in rows[0].settings._fields
        if name not in without
        and len({getattr(row.settings, name) for row in rows}) > 1
    ]


def format_duration(settings: NamedTuple, without: Sequence[str] = ()) -> str:
    """The settings that are not the defaults."""
    return ', '.join(
        f'{name} {value}'
        for name, value in settings._asdict().items()
        if name not in without and value != settings._field_defaults.get(name)
    )


def panel_of(settings: NamedTuple, panels: Sequence[str]) -> tuple:
    return tuple(getattr(settings, name) for name in panels)
