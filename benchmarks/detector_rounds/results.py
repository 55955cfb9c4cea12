"""The results of a study: a CSV file of rounds."""

from pathlib import Path

from benchmarks.shared.rows import missing_runs, read_rows, write_rows

from .studies import Run, Study, rounds_of
from .training import Round


class Results:
    """The rows of a study, which are written again for each new run.

    Args:
        folder (Path): The folder of the CSV file. It may not exist yet.
        study (Study): The study, which names the file.

    Raises:
        InputError: If the file has other columns, or a value that does not
            belong into its column.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self.study, self._file = study, folder / f'{study.name}.csv'
        self.rounds = read_rows(self._file, Run, Round)

    def missing(self, seeds: int, rounds: int) -> list[Run]:
        """List the runs that do not have all their rows."""
        return missing_runs(self.rounds, self.study.runs(seeds), rounds_of, rounds)

    def add(self, run: Run, rows: list[Round]) -> None:
        """Add a run that has ended, and write the file."""
        self.rounds[run] = rows
        write_rows(self._file, self.rounds, Run, Round)
