"""The runs of each study: methods, learning rates, weight decays, seeds."""

from typing import NamedTuple

METHODS = ('BN', 'psBN', 'GN', 'MimicNorm', 'BN+ReDo', 'BN+S&P')
SCRATCH = 'scratch'
PAIR = ('BN', 'psBN')
ROUNDS, SEEDS = 150, 5


class Run(NamedTuple):
    """A network that is trained round after round."""

    method: str
    lr: float
    """The highest one of each round."""
    weight_decay: float
    seed: int


class Setting(NamedTuple):
    lr: float
    weight_decay: float


class Study(NamedTuple):
    """A data set and a network, with the methods of each setting."""

    data: str
    network: str
    methods: dict[Setting, tuple[str, ...]]

    @property
    def name(self) -> str:
        return f'{self.data}-{self.network}'

    def runs(self, seeds: int) -> list[Run]:
        """List all runs: BN, psBN and from scratch first, then by the settings."""
        runs = [
            Run(method, *setting, seed)
            for setting, methods in self.methods.items()
            for seed in range(seeds)
            for method in (SCRATCH, *methods)
        ]
        return sorted(runs, key=lambda run: run.method not in (SCRATCH, *PAIR))


LRS, DECAYS = (0.8, 0.4, 0.2), (5e-4, 1e-4)
HIGHEST = Setting(LRS[0], DECAYS[0])
STUDIES = [
    Study(
        'cifar10',
        'plain',
        {
            **{Setting(lr, DECAYS[0]): METHODS for lr in LRS},
            **{Setting(lr, DECAYS[1]): PAIR for lr in LRS},
        },
    ),
    Study(
        'cifar10',
        'residual',
        {
            HIGHEST: METHODS,
            **{Setting(lr, DECAYS[0]): PAIR for lr in LRS[1:]},
            Setting(LRS[0], DECAYS[1]): PAIR,
        },
    ),
    Study(
        'digits',
        'plain',
        {HIGHEST: METHODS, **{Setting(lr, DECAYS[0]): PAIR for lr in LRS[1:]}},
    ),
]
