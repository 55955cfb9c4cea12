"""The results of a study: a CSV file with one row for each run."""

import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.shared.rows import read_rows, write_rows
from mmpsbn.compare.report import Row, select_best
from mmpsbn.compare.runs import Run
from mmpsbn.errors import InputError


class Key(NamedTuple):
    """A run, as in the first columns."""

    stage: str
    """``tuning`` (evaluated on held-out training images) or ``final``."""
    norm: str
    length: float
    """As a multiple of the config's schedule."""
    lr: float
    seed: int

    @classmethod
    def of(cls, run: Run) -> 'Key':
        stage = 'tuning' if run.tuning else 'final'
        return cls(stage, run.norm, float(run.length), run.lr, run.seed)

    @property
    def run(self) -> Run:
        return Run(self.norm, self.lr, self.seed, self.length, self.stage == 'tuning')


class Outcome(NamedTuple):
    """What is recorded of a run."""

    mAP: float
    mAP50: float
    dead_before: float
    """Share of the channels before a ReLU that are dead in the first steps;
    NaN if it was not measured."""
    dead: float
    """The same for the last steps."""
    diverged: int
    """0 or 1."""
    seconds: float
    device: str


class Results:
    """The rows of a CSV file, which is written again for each new row.

    Args:
        file (Path): It may not exist yet.

    Raises:
        InputError: If the file has other columns, a value that does not
            belong into its column, or a run twice.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, threading.Lock()
        self._rows = read_rows(file, Key, Outcome)
        for key, own in self._rows.items():
            if len(own) > 1:
                raise InputError(
                    f'{file} has {len(own)} rows of {" ".join(map(str, key))}, and a '
                    'run has one. Remove the others.'
                )

    def get(self, run: Run) -> Outcome | None:
        return self._rows.get(Key.of(run), [None])[0]

    def add(self, run: Run, outcome: Outcome) -> None:
        """Add a run, and write the file."""
        with self._lock:
            self._rows[Key.of(run)] = [outcome]
            write_rows(self._file, self._rows, Key, Outcome)

    def outcomes(self) -> list[Outcome]:
        return [outcome for (outcome,) in self._rows.values()]

    def tuning(self, norms: dict[float, Sequence[str]]) -> list[Row]:
        """Group the tuning runs as the report of a comparison does.

        Args:
            norms (dict): The normalizations of each length, in their order.
        """
        return self._grouped('tuning', norms)

    def best_lrs(
        self, norms: dict[float, Sequence[str]], untuned: Sequence[float] = ()
    ) -> dict[tuple[str, float], float]:
        """Return the chosen learning rate of each normalization and length.

        Args:
            norms (dict): The normalizations of each length, in their order.
            untuned (Sequence[float]): The lengths that take the learning rates
                of the first length.
        """
        best = {
            (row.norm, row.length): row.lr for row in select_best(self.tuning(norms))
        }
        first = next(iter(norms))
        return best | {
            (norm, length): best[norm, first]
            for length in untuned
            for norm in norms[length]
            if (norm, first) in best
        }

    def finals(
        self, norms: dict[float, Sequence[str]], untuned: Sequence[float] = ()
    ) -> list[Row]:
        """Group the final runs whose learning rate is the chosen one.

        Runs at another rate, which an earlier choice has left behind, are not
        part of the result.

        Args:
            norms (dict): See :meth:`best_lrs`.
            untuned (Sequence[float]): Likewise.
        """
        best = self.best_lrs(norms, untuned)
        return [
            row
            for row in self._grouped('final', norms)
            if best.get((row.norm, row.length)) == row.lr
        ]

    def _grouped(self, stage: str, norms: dict[float, Sequence[str]]) -> list[Row]:
        found = []
        for length, names in norms.items():
            for norm in names:
                own = [key for key in self._rows if key[:3] == (stage, norm, length)]
                for lr in sorted({key.lr for key in own}):
                    keys = sorted(key for key in own if key.lr == lr)
                    group = {key.run: self._rows[key][0] for key in keys}
                    found.append(_row(norm, lr, length, group))
        return found


def _row(norm: str, lr: float, length: float, group: dict[Run, Outcome]) -> Row:
    well = {run: one for run, one in group.items() if not one.diverged}
    return Row(
        norm,
        lr,
        list(group),
        list(well),
        [one.mAP for one in group.values()],
        [one.mAP50 for one in group.values()],
        *(
            [share for one in well.values() if not math.isnan(share := one[column])]
            for column in map(Outcome._fields.index, ('dead_before', 'dead'))
        ),
        length,
    )
