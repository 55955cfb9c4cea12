"""The results of a study: a CSV file of rounds."""

from benchmarks.shared.results import RoundResults

from .studies import Run, rounds_of
from .training import Round


class Results(RoundResults):
    """The rounds of a study."""

    run_type, round_type, rounds_of = Run, Round, staticmethod(rounds_of)
