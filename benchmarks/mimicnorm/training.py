"""One training, from its settings to its result."""

import time

import torch

from benchmarks.shared.data import Data, load
from benchmarks.shared.networks import Classifier
from benchmarks.shared.training import (
    AUGMENTED,
    BATCHES,
    EVALUATED,
    MOMENTUM,
    accuracy,
    fit,
)

from .correlation import correlations
from .experiments import Settings
from .norms import NORMS

WEIGHT_DECAY = 5e-4  # On CIFAR the paper's.


def train(settings: Settings, root: str | None, device: str = 'cpu') -> dict:
    """Train a classifier on one thread.

    Equal settings give equal results on one machine's CPU.

    Args:
        settings (Settings): Of the training.
        root (str, optional): The folder of CIFAR-10.
        device (str): To train on. Defaults to ``'cpu'``.

    Returns:
        dict: ``accuracy`` on the test images, ``chance`` for that of a guess,
        ``loss`` of the last batch, ``diverged``, ``seconds`` of CPU time, and
        what :func:`correlations` finds on training images, ``before`` and
        ``after``; None if diverged.
    """
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    start = time.process_time()
    data = load(settings.data, root, None).to(device)
    net = classifier(settings, data).to(device)
    images = data.train_images[:EVALUATED]
    before = correlations(net, images)
    optimizer = torch.optim.SGD(
        net.parameters(),
        settings.lr * settings.batch / BATCHES[settings.data],
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    )
    # The same batches for every norm.
    torch.manual_seed(settings.seed)
    loss = fit(
        net,
        data,
        optimizer,
        settings.epochs,
        settings.batch,
        settings.data in AUGMENTED,
    )
    return dict(
        accuracy=accuracy(net, data),
        chance=1 / data.classes,
        loss=loss,
        diverged=loss is None,
        before=before,
        after=None if loss is None else correlations(net, images),
        seconds=round(time.process_time() - start, 2),
    )


def classifier(settings: Settings, data: Data) -> Classifier:
    """The network of a training, as it starts."""
    return Classifier(
        settings.network,
        settings.depth,
        data.train_images.shape[1],
        data.classes,
        NORMS[settings.norm],
    )
