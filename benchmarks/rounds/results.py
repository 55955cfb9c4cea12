"""The results of a study: a CSV file of rounds, and one of deaths."""

import csv
import io
from pathlib import Path
from typing import NamedTuple, get_type_hints

from mmpsbn.errors import InputError
from mmpsbn.files import write_atomically

from .recovery import Death
from .studies import Run, Study, rounds_of
from .training import Result, Round

Rows = dict[Run, list[NamedTuple]]


class Results:
    """The rows of a study, which are written again for each new run.

    Args:
        folder (Path): The folder of the CSV files. They may not exist yet.
        study (Study): The study, which names the files.

    Raises:
        InputError: If a file has other columns, or a value that does not
            belong into its column.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self.study = study
        self._files = [
            (folder / f'{study.name}.csv', Round),
            (folder / f'{study.name}-deaths.csv', Death),
        ]
        self.rounds, self.deaths = (
            _read(file, kind) if file.exists() else {} for file, kind in self._files
        )

    def missing(self, seeds: int, rounds: int) -> list[Run]:
        """List the runs that do not have all their rows."""
        return [
            run
            for run in self.study.runs(seeds)
            if [row.round for row in self.rounds.get(run, []) if row.round <= rounds]
            != rounds_of(run.method, rounds)
        ]

    def add(self, run: Run, result: Result) -> None:
        """Add a run that has ended, and write the files."""
        self.rounds[run], self.deaths[run] = result
        # A run is finished if it has its rounds, so they are written last.
        for (file, kind), rows in zip(self._files[::-1], (self.deaths, self.rounds)):
            if any(rows.values()):
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, _text(rows, kind).encode())


def _text(rows: Rows, kind: type[NamedTuple]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(Run._fields + kind._fields)
    for run in sorted(rows):
        writer.writerows([*run, *row] for row in rows[run])
    return text.getvalue()


def _read(file: Path, kind: type[NamedTuple]) -> Rows:
    rows: Rows = {}
    types = {**get_type_hints(Run), **get_type_hints(kind)}
    with open(file, newline='') as lines:
        reader = csv.reader(lines)
        try:
            columns = next(reader, [])
            if columns != list(types):
                raise ValueError(f'the columns are {columns}, and not {list(types)}')
            for line in reader:
                if len(line) != len(types):
                    raise ValueError(f'it has {len(line)} values')
                values = [of(text) for of, text in zip(types.values(), line)]
                run = Run(*values[: len(Run._fields)])
                rows.setdefault(run, []).append(kind(*values[len(Run._fields) :]))
        except (ValueError, csv.Error) as error:
            raise InputError(
                f'line {reader.line_num} of {file} is not a result of this '
                f'study: {error}. Restore the committed file, or choose '
                'another folder with --results.'
            ) from error
    return rows
