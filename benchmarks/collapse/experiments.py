"""What is trained: each experiment is variants of one base recipe.

Variants that several experiments share are trained once.
"""

from collections.abc import Sequence
from typing import NamedTuple, Optional

from benchmarks.shared.settings import Experiment, grid


class Settings(NamedTuple):
    """One training; the defaults are the base recipe."""

    seed: int
    data: str = 'digits'
    network: str = 'conv'
    epochs: int = 30
    optimizer: str = 'SGD'
    weight_decay: float = 5e-4
    slope: float = 0.0
    """Of the rectifier's negative side."""
    gamma: float = 1.0
    """Where it starts."""
    half: int | None = None
    """Of the classes."""
    start: Optional['Settings'] = None
    """The training whose weights this one starts from."""
    lr: float = 0.4
    """After an epoch of warm-up, and then to 0 by a cosine."""
    norm_decay: float = 1.0
    """By which the weight decay is multiplied for gamma and beta."""
    alpha: float = 0.0
    """Of psBN; 0 is BN."""
    checks: int = 10
    """How often the channels are counted after the start, at equal distances."""

    @property
    def norm(self) -> str:
        return 'psBN' if self.alpha else 'BN'


def settings(seed: int, base: dict, variant: dict) -> Settings:
    start = variant.get('start')
    if start is not None:
        start = settings(seed, base, start)
    return Settings(seed, **{**base, **variant, 'start': start})


def with_starts(jobs: Sequence[Settings]) -> list[Settings]:
    """Every training once, first those that others start from."""
    return list(dict.fromkeys([*(job.start for job in jobs if job.start), *jobs]))


BN, PSBN = 0.0, 0.1
ALPHAS = (BN, PSBN)
LRS = (0.04, 0.2, 0.4, 0.6, 0.8, 1.2, 1.6, 2.4, 4.0)
HIGH = (0.4, 1.6)
# The first five classes, learned at a rate at which little collapses.
PRETRAINED = dict(half=0, lr=0.1)
COLLAPSED = dict(lr=1.6, checks=40)

EXPERIMENTS: dict[str, Experiment] = {
    'lr': Experiment(
        'Learning rate',
        grid(network=('conv', 'resnet'), lr=LRS, alpha=ALPHAS),
        'lr',
        ('network',),
    ),
    'gamma': Experiment(
        'Where gamma starts',
        grid(gamma=(0.125, 0.25, 0.5, 1.0, 2.0), alpha=(BN,)),
        'gamma',
    ),
    'optimizer': Experiment(
        'Optimizers with adaptive rates',
        grid(optimizer=('Adam', 'RMSprop'), lr=(0.01, 0.03, 0.1), alpha=ALPHAS)
        +
        # Its decay is not divided by the gradient's size.
        grid(
            optimizer=('AdamW',),
            weight_decay=(0.05,),
            lr=(0.01, 0.03, 0.1),
            alpha=ALPHAS,
        ),
        'lr',
        ('optimizer',),
    ),
    'finetune': Experiment(
        'Finetuning a BN network on the other five classes',
        grid(
            start=(PRETRAINED,), half=(1,), lr=(0.04, 0.1, 0.4, 1.6, 4.0), alpha=ALPHAS
        ),
        'lr',
    ),
    'leaky': Experiment(
        'Leaky ReLU', grid(slope=(0.01, 0.1), lr=HIGH, alpha=ALPHAS), 'lr', ('slope',)
    ),
    'decay': Experiment(
        'Weight decay of gamma and beta',
        grid(lr=HIGH, norm_decay=(0.0, 1.0, 4.0), alpha=ALPHAS),
        'norm_decay',
        ('lr',),
    ),
    'alpha': Experiment(
        'alpha (0 is BN)',
        grid(lr=HIGH, alpha=(BN, 0.01, 0.03, PSBN, 0.2, 0.5)),
        'alpha',
        ('lr',),
    ),
    'recovery': Experiment(
        'From scratch, and on from the collapsed BN network',
        [
            COLLAPSED,
            dict(COLLAPSED, alpha=PSBN),
            dict(COLLAPSED, start=COLLAPSED),
            dict(COLLAPSED, start=COLLAPSED, alpha=PSBN),
            dict(COLLAPSED, start=COLLAPSED, alpha=PSBN, norm_decay=0.0),
        ],
        'step',
    ),
}
# Sized for two cores, and shown like the experiments of the same names.
CIFAR10: dict[str, Experiment] = {
    'lr': EXPERIMENTS['lr']._replace(
        variants=grid(
            network=('conv', 'resnet'), lr=(0.1, 0.4, 0.8, 1.6, 3.2), alpha=ALPHAS
        )
    )
}
