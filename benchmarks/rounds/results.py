"""The results of a study: a CSV file of rounds, and one of deaths."""

from pathlib import Path

from benchmarks.shared.rows import missing_runs, read_rows, write_rows

from .recovery import Death
from .studies import Run, Study, rounds_of
from .training import Result, Round


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
            read_rows(file, Run, kind) for file, kind in self._files
        )

    def missing(self, seeds: int, rounds: int) -> list[Run]:
        """List the runs that do not have all their rows."""
        return missing_runs(self.rounds, self.study.runs(seeds), rounds_of, rounds)

    def add(self, run: Run, result: Result) -> None:
        """Add a run that has ended, and write the files."""
        self.rounds[run], self.deaths[run] = result
        # A run is finished if it has its rounds, so they are written last.
        for (file, kind), rows in zip(self._files[::-1], (self.deaths, self.rounds)):
            if any(rows.values()):
                write_rows(file, rows, Run, kind)
