"""What is trained: each experiment is variants of one base recipe.

Variants that several experiments share are trained once.
"""

from pathlib import Path
from typing import NamedTuple

from benchmarks.shared.command import Study
from benchmarks.shared.rows import Numbers
from benchmarks.shared.settings import Experiment, grid
from benchmarks.shared.training import BATCHES


class Settings(NamedTuple):
    """One training; the defaults are the base recipe."""

    seed: int
    network: str = 'conv'
    depth: int = 4
    norm: str = 'BN'
    epochs: int = 12
    batch: int = BATCHES['digits']
    lr: float = 0.2
    """The highest one for the usual batch size of the data set. Other batch sizes
    have a learning rate in proportion."""


class Result(NamedTuple):
    """What a training is reported with.

    The correlations of each ReLU, before and after training, are empty unless
    the experiment on them has the training. Those after training are also empty
    if it diverged. A value that is not finite is NaN.
    """

    accuracy: float
    """On the test images."""
    diverged: int
    """1 if the loss was not finite, which ends the training."""
    channels_before: Numbers
    """The mean absolute correlation of two channels."""
    channels_after: Numbers
    images_before: Numbers
    """The mean cosine of two images."""
    images_after: Numbers
    seconds: float
    """The CPU time."""


ABLATION = ('BN', 'none', 'weight mean', 'last BN', 'MimicNorm')
LRS = (0.01, 0.05, 0.2, 0.8)

EXPERIMENTS: dict[str, Experiment] = {
    'ablation': Experiment(
        'Ablation',
        grid(network=('conv',), depth=(4, 16, 32), lr=LRS, norm=ABLATION)
        + grid(network=('resnet',), depth=(7, 19), lr=LRS, norm=ABLATION),
        'lr',
        ('network', 'depth'),
    ),
    'micro-batch': Experiment(
        'Small batches',
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
        'ReLU',
    ),
}
# Sized for two cores, and shown like the experiments of the same names.
CIFAR10: dict[str, Experiment] = {
    'ablation': EXPERIMENTS['ablation']._replace(
        variants=[
            dict(variant, batch=BATCHES['cifar10'])
            for depth in (
                dict(network=('conv',), depth=(8,)),
                dict(network=('resnet',), depth=(7,)),
            )
            for variant in grid(lr=(0.02, 0.1, 0.4), norm=ABLATION, **depth)
        ]
    )
}

STUDY = Study(
    Path(__file__).resolve().parent,
    dict(digits=EXPERIMENTS, cifar10=CIFAR10),
    epochs=dict(digits=12, cifar10=6),
    seeds=dict(digits=5, cifar10=3),
    settings=Settings,
    result=Result,
)


def is_correlated(settings: Settings) -> bool:
    """Return whether the experiment on correlations has a training."""
    return any(
        settings._asdict().items() >= variant.items()
        for variant in EXPERIMENTS['correlation'].variants
    )
