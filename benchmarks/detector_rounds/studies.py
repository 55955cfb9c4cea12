"""The runs of each study: normalizations, placements, learning rates, seeds."""

from typing import NamedTuple

from mmpsbn.compare.placing import FIXED

DETECTORS = ('faster-rcnn', 'retinanet')
PLACEMENTS = ('backbone', 'everywhere')
METHODS = ('BN', 'psBN', 'FrozenBN', 'norm_eval')
RESTART = 'restart'
"""A reference: BN, finetuned from the starting weights in every second round."""
SCRATCH = 'scratch'
"""A reference: BN, trained from random weights in some rounds."""
REFERENCES = (RESTART, SCRATCH)
ROUNDS, SEEDS = 40, 3
EVERY, SCRATCH_ROUNDS = 2, 5
"""References are trained in every second round, from random weights only in
the last ones of all ROUNDS."""
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

        BN, psBN and the restart come first, then the other reference, fixed
        statistics, and low rates.
        """
        runs = [
            Run(method, *setting, seed)
            for setting in self.settings
            for seed in range(seeds)
            for method in self.methods(setting)
        ]
        return sorted(runs, key=priority)

    def methods(self, setting: Setting) -> tuple[str, ...]:
        """List the methods of a setting.

        Random weights are not trained at rates below the usual one, and fixed
        statistics not at those below the highest one that works. Only backbones
        take norm_eval.
        """
        main = 'BN', 'psBN', RESTART
        if setting.lr >= USUAL_LR:
            main = *main, SCRATCH
        elif setting.lr < max(
            one.lr
            for one in self.settings
            if one.placement == setting.placement and one.lr < USUAL_LR
        ):
            return main
        backbones = ('norm_eval',) if setting.placement == 'backbone' else ()
        return *main, 'FrozenBN', *backbones


def priority(run: Run) -> tuple:
    """Return a key by which runs are sorted, see :meth:`Study.runs`."""
    low = run.lr < USUAL_LR
    return low or run.method in FIXED, run.method == SCRATCH, low, run.seed


def rounds_of(method: str, rounds: int) -> list[int]:
    """List the rounds in which a method is trained."""
    every = EVERY if method in REFERENCES else 1
    found = list(range(every, rounds + 1, every))
    if method == SCRATCH:
        found = [one for one in found if one > ROUNDS - EVERY * SCRATCH_ROUNDS]
    return found


def make_studies(lrs: dict[Place, tuple[float, ...]]) -> list[Study]:
    """Return the study of each detector.

    Args:
        lrs (dict): The learning rates for each detector and placement, see
            :func:`~benchmarks.detector_rounds.pilot.find_lrs`.
    """
    return [
        Study(
            detector,
            tuple(
                Setting(placement, lr)
                for placement in PLACEMENTS
                for lr in lrs[Place(detector, placement)]
            ),
        )
        for detector in DETECTORS
    ]
