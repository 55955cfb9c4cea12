"""The rounds of runs, averaged over windows and compared by seed."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mmpsbn.statistics.intervals import (
    ALPHA,
    PairedDifference,
    compare_paired,
    correct_p_values,
)
from mmpsbn.statistics.tables import (
    format_difference,
    format_interval,
    format_p,
    format_table,
)

from .rows import Rows

WINDOW = 10


class Comparison(NamedTuple):
    """The difference of two methods in a window of rounds."""

    setting: NamedTuple
    end: int
    """The last round of the window."""
    paired: PairedDifference
    p: float
    """Corrected over all comparisons of a study."""


def count_significant(found: Iterable[Comparison]) -> tuple[int, int]:
    """Count the differences that are significantly above 0, and those below."""
    means = [one.paired.mean for one in found if one.p < ALPHA]
    return sum(mean > 0 for mean in means), sum(mean < 0 for mean in means)


def rounds_up_to(end: int) -> str:
    """Name the rounds of a window."""
    return f'{end - WINDOW + 1} to {end}'


def difference_table(
    found: Iterable[Comparison], columns: dict[str, Callable[[NamedTuple], str]]
) -> str:
    """Format the differences of psBN and BN.

    Args:
        found (list[Comparison]): The differences.
        columns (dict): The header of each column that names a setting, and a
            function from a setting to its cell.
    """
    return format_table(
        [*columns, 'rounds', 'psBN minus BN', '95 % CI', 'p (Holm)', 'seeds'],
        [
            [
                *(cell(one.setting) for cell in columns.values()),
                rounds_up_to(one.end),
                format_difference(one.paired.mean),
                format_interval(one.paired.low, one.paired.high),
                format_p(one.p),
                str(one.paired.seeds),
            ]
            for one in found
        ],
    )


class Series:
    """The rounds of a study, for tables and figures.

    Args:
        rows (dict): The rows of each run. The fields of a run are its method,
            those of its setting, and its seed.
        methods (list[str]): All methods in their order.
    """

    def __init__(self, rows: Rows, methods: Sequence[str]) -> None:
        self._methods = methods
        self._values: dict[NamedTuple, dict[int, NamedTuple]] = {
            run: {row.round: row for row in own} for run, own in rows.items()
        }
        self.end = max(
            (round for rows in self._values.values() for round in rows), default=0
        )

    def methods(self, setting: NamedTuple) -> list[str]:
        """List the methods of a setting that have runs, in their order."""
        return [method for method in self._methods if self.seeds(setting, method)]

    def seeds(self, setting: NamedTuple, method: str) -> list[int]:
        return sorted(
            run.seed
            for run in self._values
            if (run.method, run[1:-1]) == (method, setting)
        )

    def window(
        self,
        setting: NamedTuple,
        method: str,
        measure: str,
        end: int,
        baseline: str | None = None,
        window: int = WINDOW,
    ) -> list[float]:
        """Average a measure over the last rounds up to ``end``.

        Args:
            setting (Setting): The setting.
            method (str): The method.
            measure (str): A column of the CSV file.
            end (int): The last round of the window.
            baseline (str, optional): The method whose values are subtracted,
                round by round.
            window (int): The number of rounds. Defaults to WINDOW.

        Returns:
            list[float]: One value for each seed (of both methods) that has
            values.
        """
        means = self._means(setting, method, measure, end, baseline, window)
        return list(means.values())

    def change(
        self, setting: NamedTuple, method: str, measure: str, first: int, last: int
    ) -> list[float]:
        """Subtract the average of one window from that of a later one.

        Args:
            setting (Setting): The setting.
            method (str): The method.
            measure (str): A column of the CSV file.
            first (int): The last round of the earlier window.
            last (int): The last round of the later window.

        Returns:
            list[float]: One value for each seed that has values in both.
        """
        before, after = (
            self._means(setting, method, measure, end) for end in (first, last)
        )
        return [after[seed] - before[seed] for seed in after if seed in before]

    def _means(
        self, setting, method, measure, end, baseline=None, window=WINDOW
    ) -> dict[int, float]:
        found = {}
        for seed in self.seeds(setting, method):
            # A run is equal to a tuple of its values.
            own = self._values[(method, *setting, seed)]
            other = self._values.get((baseline, *setting, seed), {})
            values = [
                getattr(own[at], measure)
                - (getattr(other[at], measure) if baseline else 0)
                for at in range(end - window + 1, end + 1)
                if at in own and (at in other or not baseline)
            ]
            if values and not np.isnan(values).all():
                found[seed] = float(np.nanmean(values))
        return found

    def compare(
        self, settings: Iterable[NamedTuple], measure: str, ends: Sequence[int]
    ) -> list[Comparison]:
        """Compare psBN with BN in all settings and windows of a study.

        Windows in which all seeds have the same difference have no p value,
        and are left out.

        Args:
            settings (list[Setting]): The settings.
            measure (str): A column of the CSV file.
            ends (list[int]): The last round of each window. Windows beyond the last
                round of the study are left out.
        """
        found = []
        for setting in settings:
            for end in (one for one in ends if one <= self.end):
                differences = self.window(setting, 'psBN', measure, end, 'BN')
                paired = compare_paired(differences, np.zeros_like(differences))
                if paired.p is not None:
                    found.append((setting, end, paired))
        return [
            Comparison(*one, p)
            for one, p in zip(found, correct_p_values([one[-1].p for one in found]))
        ]
