"""The runs of each study: normalizations, placements, learning rates, seeds."""

from typing import NamedTuple

DETECTORS = ('faster-rcnn', 'retinanet')
PLACEMENTS = ('backbone', 'everywhere')
METHODS = ('BN', 'psBN', 'FrozenBN')
RESTART = 'restart'
"""The reference: BN, finetuned from the starting weights in each round."""
PAIR = ('BN', 'psBN')
ROUNDS, SEEDS = 40, 3
RESTART_EVERY = 2
"""The reference is trained in every second round."""
USUAL_LR = 0.04
"""The learning rate of configs/demo, which has the same batch size."""


class Run(NamedTuple):
    """A detector that is finetuned round after round."""

    method: str
    placement: str
    """Where the norm layers are: ``backbone`` or ``everywhere``."""
    lr: float
    """The highest one of each round."""
    seed: int


class Place(NamedTuple):
    """A detector, and where its norm layers are."""

    detector: str
    placement: str


class Setting(NamedTuple):
    placement: str
    lr: float

    @property
    def name(self) -> str:
        return f'{self.placement}, lr {self.lr:g}'


class Study(NamedTuple):
    """A detector with its settings."""

    name: str
    settings: tuple[Setting, ...]

    def runs(self, seeds: int) -> list[Run]:
        """List all runs. Those that come first make the most of a part.

        The highest rates come first, then BN, psBN and the reference, then
        seeds.
        """
        runs = [
            Run(method, *setting, seed)
            for setting in self.settings
            for seed in range(seeds)
            for method in (*PAIR, RESTART, *METHODS[len(PAIR) :])
        ]
        return sorted(runs, key=priority)


def priority(run: Run) -> tuple:
    """Return a key by which runs are sorted, see :meth:`Study.runs`."""
    return run.lr == USUAL_LR, run.method in METHODS[len(PAIR) :], run.seed


def rounds_of(method: str, rounds: int) -> list[int]:
    """List the rounds in which a method is trained."""
    every = RESTART_EVERY if method == RESTART else 1
    return list(range(every, rounds + 1, every))


def make_studies(highest: dict[Place, float]) -> list[Study]:
    """Return the study of each detector.

    Args:
        highest (dict): The highest learning rate for each detector and
            placement, see :func:`~benchmarks.detector_rounds.pilot.highest_lrs`.
    """
    return [
        Study(
            detector,
            tuple(
                Setting(placement, lr)
                for placement in PLACEMENTS
                # The usual rate can be the highest one that works.
                for lr in dict.fromkeys((highest[Place(detector, placement)], USUAL_LR))
            ),
        )
        for detector in DETECTORS
    ]
