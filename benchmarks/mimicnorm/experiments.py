"""What is trained: each experiment is variants of one base recipe.

Variants that several experiments share are trained once.
"""

from typing import NamedTuple

from benchmarks.shared.settings import Experiment, grid
from benchmarks.shared.training import BATCHES


class Settings(NamedTuple):
    """One training; the defaults are the base recipe."""

    seed: int
    data: str = 'digits'
    network: str = 'conv'
    depth: int = 4
    norm: str = 'BN'
    epochs: int = 12
    batch: int = BATCHES['digits']
    lr: float = 0.2
    """For the usual batch of the data set, and in proportion to it."""


def settings(seed: int, base: dict, variant: dict) -> Settings:
    return Settings(seed, **{**base, **variant})


ABLATION = ('BN', 'none', 'weight mean', 'last BN', 'MimicNorm')
LRS = (0.01, 0.05, 0.2, 0.8)

EXPERIMENTS: dict[str, Experiment] = {
    'ablation': Experiment(
        'Which of the two operations trains what',
        grid(network=('conv',), depth=(4, 16, 32), lr=LRS, norm=ABLATION)
        + grid(network=('resnet',), depth=(7, 19), lr=LRS, norm=ABLATION),
        'lr',
        ('network', 'depth'),
    ),
    'micro-batch': Experiment(
        'Micro-batches',
        grid(batch=(1, 2, 4, 8, 32), norm=('BN', 'GN', 'MimicNorm')),
        'batch',
    ),
    'correlation': Experiment(
        'Correlation through depth',
        grid(
            network=('conv',),
            depth=(16,),
            lr=(0.05,),
            norm=('BN', 'none', 'weight mean', 'MimicNorm'),
        ),
        'layer',
    ),
}
# Sized for two cores, and shown like the experiments of the same names.
CIFAR10: dict[str, Experiment] = {
    'ablation': EXPERIMENTS['ablation']._replace(
        variants=[
            dict(variant, batch=BATCHES['cifar10'])
            for depth in (
                dict(network=('conv',), depth=(16,)),
                dict(network=('resnet',), depth=(19,)),
            )
            for variant in grid(lr=(0.05, 0.1, 0.2, 0.4), norm=ABLATION, **depth)
        ]
    )
}
