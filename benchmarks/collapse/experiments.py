"""What is trained: each experiment is variants of one base recipe.

Variants that several experiments share are trained once.
"""

from pathlib import Path
from typing import NamedTuple

from benchmarks.shared.command import Study
from benchmarks.shared.rows import Numbers
from benchmarks.shared.settings import Experiment, grid


class Settings(NamedTuple):
    """One training; the defaults are the base recipe."""

    seed: int
    network: str = 'conv'
    epochs: int = 30
    optimizer: str = 'SGD'
    weight_decay: float = 5e-4
    slope: float = 0.0
    """The negative slope of the rectifier."""
    gamma: float = 1.0
    """The initial value of gamma."""
    classes: str = 'all'
    """``all``, or the ``first`` or ``second`` half of them."""
    start: str = ''
    """One of STARTS, the training that this one continues from; empty for
    random weights."""
    lr: float = 0.4
    """The highest learning rate."""
    norm_decay: float = 1.0
    """The factor of the weight decay for gamma and beta."""
    alpha: float = 0.0
    """The alpha of psBN; 0 is BN."""

    @property
    def norm(self) -> str:
        return 'psBN' if self.alpha else 'BN'


class Result(NamedTuple):
    """What a training is reported with."""

    accuracy: float
    """On the test images."""
    diverged: int
    """1 if the loss was not finite, which ends the training."""
    channels: int
    """The number of channels whose norm layer a ReLU follows."""
    dead: Numbers
    """The number of dead channels at the start and after every tenth of the
    epochs."""
    died: Numbers
    """The number of channels that have been dead at one of these times so far."""
    seconds: float
    """The CPU time."""


STARTS = {
    # Few channels collapse at this learning rate.
    'first half': dict(classes='first', lr=0.1),
    'collapsed': dict(lr=1.6),
}


def start_of(settings: Settings) -> Settings:
    """Return the settings of the training that another one continues from."""
    return Settings(settings.seed, epochs=settings.epochs, **STARTS[settings.start])


def epochs_of_counts(epochs: int) -> range:
    """List the epochs after which dead channels are counted."""
    return range(0, epochs + 1, max(1, epochs // 10))


BN, PSBN = 0.0, 0.1
ALPHAS = (BN, PSBN)
LRS = (0.04, 0.2, 0.4, 0.6, 0.8, 1.2, 1.6, 2.4, 4.0)
HIGH = (0.4, 1.6)

EXPERIMENTS: dict[str, Experiment] = {
    'lr': Experiment(
        'Learning rate',
        grid(network=('conv', 'resnet'), lr=LRS, alpha=ALPHAS),
        'lr',
        ('network',),
    ),
    'gamma': Experiment(
        'Initial gamma', grid(gamma=(0.125, 0.25, 0.5, 1.0, 2.0), alpha=ALPHAS)
    ),
    'optimizer': Experiment(
        'Adaptive optimizers',
        grid(optimizer=('Adam', 'RMSprop'), lr=(0.01, 0.03, 0.1), alpha=ALPHAS)
        +
        # Its decay is not divided by the size of the gradient.
        grid(
            optimizer=('AdamW',),
            weight_decay=(0.05,),
            lr=(0.01, 0.03, 0.1),
            alpha=ALPHAS,
        ),
    ),
    'finetune': Experiment(
        'Finetuning',
        grid(
            start=('first half',),
            classes=('second',),
            lr=(0.04, 0.1, 0.4, 1.6, 4.0),
            alpha=ALPHAS,
        ),
    ),
    'leaky': Experiment('Leaky ReLU', grid(slope=(0.01, 0.1), lr=HIGH, alpha=ALPHAS)),
    'decay': Experiment(
        'Weight decay of gamma and beta',
        grid(lr=HIGH, norm_decay=(0.0, 1.0, 4.0), alpha=ALPHAS),
    ),
    'alpha': Experiment(
        'alpha', grid(lr=HIGH, alpha=(BN, 0.01, 0.03, PSBN, 0.2, 0.5)), 'alpha', ('lr',)
    ),
    'recovery': Experiment(
        'Recovery of a collapsed network',
        grid(lr=(1.6,), alpha=ALPHAS)
        + grid(lr=(1.6,), start=('collapsed',), norm_decay=(1.0, 0.0), alpha=ALPHAS),
        'epoch',
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

STUDY = Study(
    Path(__file__).resolve().parent,
    dict(digits=EXPERIMENTS, cifar10=CIFAR10),
    epochs=dict(digits=30, cifar10=6),
    seeds=dict(digits=5, cifar10=3),
    settings=Settings,
    result=Result,
)
