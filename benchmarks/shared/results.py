"""The results of a study over rounds: a CSV file with the rounds of each run."""

from pathlib import Path
from typing import ClassVar, NamedTuple

from .rows import add_rows, read_rows


class RoundResults:
    """The rows of a study. Each run adds its rows when it ends.

    A study derives from it and sets the types.

    Args:
        folder (Path): The folder of the CSV file. It may not exist yet.
        study (Study): The study, which names the file and lists the runs.

    Raises:
        InputError: If the file has other columns, or a value that does not
            belong into its column.
    """

    run_type: ClassVar[type[NamedTuple]]
    round_type: ClassVar[type[NamedTuple]]

    def __init__(self, folder: Path, study) -> None:
        self.study, self._file = study, folder / f'{study.name}.csv'
        self.rounds = read_rows(self._file, self.run_type, self.round_type)

    @staticmethod
    def rounds_of(method: str, rounds: int) -> list[int]:
        """List the rounds in which a method is trained."""
        return list(range(1, rounds + 1))

    def missing(self, seeds: int, rounds: int) -> list[NamedTuple]:
        """List the runs that do not have all their rows."""
        return [
            run
            for run in self.study.runs(seeds)
            if [row.round for row in self.rounds.get(run, []) if row.round <= rounds]
            != self.rounds_of(run.method, rounds)
        ]

    def add(self, run: NamedTuple, rows: list[NamedTuple]) -> None:
        """Add a run that has ended, and write the file."""
        self.rounds = add_rows(self._file, run, rows, self.round_type)
