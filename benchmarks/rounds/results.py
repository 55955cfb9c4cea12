"""The results of a study: a CSV file of rounds, and one of deaths."""

from pathlib import Path

from benchmarks.shared.results import RoundResults
from benchmarks.shared.rows import add_rows, read_rows

from .recovery import Death
from .studies import Run, Study
from .training import Result, Round


class Results(RoundResults):
    """The rounds of a study, and the deaths of its channels."""

    run_type, round_type = Run, Round

    def __init__(self, folder: Path, study: Study) -> None:
        super().__init__(folder, study)
        self._deaths = folder / f'{study.name}-deaths.csv'
        self.deaths = read_rows(self._deaths, Run, Death)

    def add(self, run: Run, result: Result) -> None:
        """Add a run that has ended, and write the files."""
        rounds, deaths = result
        # A run is finished if it has its rounds, so they are written last.
        if deaths or run in self.deaths:
            self.deaths = add_rows(self._deaths, run, deaths, Death)
        super().add(run, rounds)
