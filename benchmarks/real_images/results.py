"""The results of a study: a CSV file with one row for each run."""

import csv
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmpsbn.compare.report import Row, select_best
from mmpsbn.compare.runs import Run
from mmpsbn.errors import InputError
from mmpsbn.files import write_atomically


class RunRow(NamedTuple):
    """One run."""

    stage: str
    """``tuning`` (evaluated on held-out training images) or ``final``."""
    norm: str
    length: float
    """As a multiple of the config's schedule."""
    lr: float
    seed: int
    mAP: float
    mAP50: float
    dead_before: float | None
    """Share of the channels before a ReLU that are dead in the first steps;
    None if it was not measured."""
    dead: float | None
    """The same for the last steps."""
    diverged: bool
    seconds: float
    device: str

    @property
    def run(self) -> Run:
        return Run(self.norm, self.lr, self.seed, self.length, self.stage == 'tuning')


class Results:
    """The rows of a CSV file, which is written again for each new row.

    Args:
        file (Path): It may not exist yet.

    Raises:
        InputError: If the file has other columns, or a value that is not of
            its column.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, threading.Lock()
        self._rows: dict[Run, RunRow] = {}
        if file.exists():
            for row in _read(file):
                self._rows[row.run] = row

    def get(self, run: Run) -> RunRow | None:
        return self._rows.get(run)

    def add(
        self,
        run: Run,
        mAP: float,
        mAP50: float,
        dead_before: float | None,
        dead: float | None,
        diverged: bool,
        seconds: float,
        device: str,
    ) -> None:
        """Add a run, and write the file."""
        row = RunRow(
            'tuning' if run.tuning else 'final',
            run.norm,
            float(run.length),
            run.lr,
            run.seed,
            round(mAP, 4),
            round(mAP50, 4),
            _rounded(dead_before),
            _rounded(dead),
            diverged,
            round(seconds, 1),
            device,
        )
        with self._lock:
            self._rows[run] = row
            text = io.StringIO()
            writer = csv.writer(text, lineterminator='\n')
            writer.writerow(RunRow._fields)
            for row in sorted(
                self._rows.values(),
                key=lambda row: (row.stage, -row.length, row.norm, row.lr, row.seed),
            ):
                writer.writerow(row)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, text.getvalue().encode())

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
                own = [
                    row
                    for row in self._rows.values()
                    if (row.stage, row.norm, row.length) == (stage, norm, length)
                ]
                for lr in sorted({row.lr for row in own}):
                    group = sorted(
                        (row for row in own if row.lr == lr), key=lambda row: row.seed
                    )
                    found.append(_grouped(norm, lr, length, group))
        return found

    def all(self) -> list[RunRow]:
        return list(self._rows.values())


def _grouped(norm, lr, length, group: list[RunRow]) -> Row:
    well = [row for row in group if not row.diverged]
    return Row(
        norm,
        lr,
        [row.run for row in group],
        [row.run for row in well],
        [row.mAP for row in group],
        [row.mAP50 for row in group],
        *(
            [getattr(row, name) for row in well if getattr(row, name) is not None]
            for name in ('dead_before', 'dead')
        ),
        length,
    )


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 5)


def _read(file: Path) -> list[RunRow]:
    with open(file, newline='') as lines:
        reader = csv.DictReader(lines)
        if reader.fieldnames != list(RunRow._fields):
            raise InputError(
                f'{file} has the columns {reader.fieldnames}, and a file of '
                f'results has {list(RunRow._fields)}. Restore the committed '
                'file, or choose another folder with --results.'
            )
        try:
            return [_parsed(row) for row in reader]
        except (ValueError, TypeError) as error:
            raise InputError(
                f'line {reader.line_num} of {file} is not the result of a '
                f'run: {error}. Restore the committed file, or choose another '
                'folder with --results.'
            ) from error


def _parsed(row: dict) -> RunRow:

    def share(name):
        return float(row[name]) if row[name] else None

    return RunRow(
        row['stage'],
        row['norm'],
        float(row['length']),
        float(row['lr']),
        int(row['seed']),
        float(row['mAP']),
        float(row['mAP50']),
        share('dead_before'),
        share('dead'),
        row['diverged'] == 'True',
        float(row['seconds']),
        row['device'],
    )
