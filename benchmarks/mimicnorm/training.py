"""One training, from its settings to its result."""

import time

import torch

from benchmarks.shared.data import Data, load
from benchmarks.shared.networks import Classifier
from benchmarks.shared.rows import Numbers
from benchmarks.shared.training import (
    AUGMENTED,
    BATCHES,
    EVALUATED,
    MOMENTUM,
    accuracy,
    fit,
)

from .correlation import correlations
from .experiments import Result, Settings, is_correlated
from .norms import NORMS

WEIGHT_DECAY = 5e-4  # The paper's value for CIFAR.
NOTHING = dict(channels=Numbers(()), images=Numbers(()))


def train(
    settings: Settings, data: str, root: str | None = None, device: str = 'cpu'
) -> Result:
    """Train a classifier on one thread.

    Equal settings give equal results on one machine's CPU.

    Args:
        settings (Settings): The settings of the training.
        data (str): The data set.
        root (str, optional): The folder of CIFAR-10.
        device (str): The device. Defaults to ``'cpu'``.
    """
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    begin = time.process_time()
    images = load(data, root, None).to(device)
    net = classifier(settings, images).to(device)
    watched = images.train_images[:EVALUATED]
    measured = is_correlated(settings)
    before = correlations(net, watched) if measured else NOTHING
    optimizer = torch.optim.SGD(
        net.parameters(),
        settings.lr * settings.batch / BATCHES[data],
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    )
    # The same batches for every norm.
    torch.manual_seed(settings.seed)
    finite = fit(
        net, images, optimizer, settings.epochs, settings.batch, data in AUGMENTED
    )
    after = correlations(net, watched) if measured and finite else NOTHING
    return Result(
        round(accuracy(net, images), 5),
        int(not finite),
        before['channels'],
        after['channels'],
        before['images'],
        after['images'],
        round(time.process_time() - begin, 1),
    )


def classifier(settings: Settings, data: Data) -> Classifier:
    """Build the network of a training, with random weights."""
    return Classifier(
        settings.network,
        settings.depth,
        data.train_images.shape[1],
        data.classes,
        NORMS[settings.norm],
    )
