"""One training, from its settings to its result."""

import copy
import time
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from benchmarks.shared.data import load
from benchmarks.shared.networks import Classifier, Layers
from benchmarks.shared.rows import Numbers
from benchmarks.shared.training import (
    AUGMENTED,
    BATCHES,
    EVALUATED,
    MOMENTUM,
    accuracy,
    fit,
)
from mmpsbn.analysis import ChannelWatch
from mmpsbn.analysis.collapse import norm_layers
from mmpsbn.layers import PSBatchNorm2d

from .experiments import Result, Settings, epochs_of_counts, start_of

DEPTHS = dict(conv=4, resnet=7)
HALVES = dict(all=None, first=0, second=1)


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
    begin = time.process_time()
    net, checks, images, finite = _fit(settings, data, root, device)
    return Result(
        round(accuracy(net, images), 5),
        int(not finite),
        checks.channels,
        Numbers(checks.dead),
        Numbers(checks.died),
        round(time.process_time() - begin, 1),
    )


def _fit(settings: Settings, data: str, root: str | None, device: str) -> tuple:
    torch.set_num_threads(1)
    start = _start(start_of(settings), data, root, device) if settings.start else None
    torch.manual_seed(settings.seed)
    images = load(data, root, HALVES[settings.classes]).to(device)
    net = classifier(settings, images.train_images.shape[1], images.classes).to(device)
    if start:
        if settings.classes != start_of(settings).classes:
            start = {**start, **net.fc.state_dict(prefix='fc.')}
        net.load_state_dict(start)
    batch = BATCHES[data]
    per_epoch = len(images.train_labels) // batch
    checks = Checks(net, images.train_images)
    checks.take()
    due = {per_epoch * epoch for epoch in epochs_of_counts(settings.epochs)[1:]}

    def after_step(step: int) -> None:
        if step in due:
            checks.take()

    finite = fit(
        net,
        images,
        _optimizer(net, settings),
        settings.epochs,
        batch,
        data in AUGMENTED,
        after_step,
    )
    return net, checks, images, finite


# Several trainings of a seed continue from the same one.
@lru_cache(maxsize=2)
def _start(settings: Settings, data: str, root: str | None, device: str) -> dict:
    return _fit(settings, data, root, device)[0].state_dict()


def classifier(settings: Settings, channels: int, classes: int) -> Classifier:
    """Build the network of a training, with random weights."""
    layers = Layers(
        partial(PSBatchNorm2d, alpha=settings.alpha)
        if settings.alpha
        else nn.BatchNorm2d
    )
    net = Classifier(
        settings.network,
        DEPTHS[settings.network],
        channels,
        classes,
        layers,
        settings.slope,
    )
    for _, layer in norm_layers(net):
        nn.init.constant_(layer.weight, settings.gamma)
    return net


class Checks:
    """The dead channels of a network, counted several times in its training.

    Channels that meet a residual sum before their ReLU are left out.
    """

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        self._net, self._images = net, images
        self._ever: Tensor | None = None
        self.dead: list[int] = []
        self.died: list[int] = []
        self.channels = 0

    def take(self) -> None:
        # Normalized by these images, as in training: running statistics lag
        # behind the weights. The copy keeps those of the network unchanged.
        net = copy.deepcopy(self._net).train()
        watch = ChannelWatch(net)
        with torch.no_grad(), watch:
            for images in self._images.split(EVALUATED):
                net(images)
        dead = torch.cat(
            [own.dead for own in watch.outputs.values() if not own.after_sum]
        )
        self._ever = dead if self._ever is None else self._ever | dead
        self.dead.append(int(dead.sum()))
        self.died.append(int(self._ever.sum()))
        self.channels = len(dead)


def _optimizer(net: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    norms = [p for _, layer in norm_layers(net) for p in layer.parameters()]
    others = set(net.parameters()) - set(norms)
    groups: list[dict] = [
        dict(params=[p for p in net.parameters() if p in others]),
        dict(params=norms, weight_decay=settings.weight_decay * settings.norm_decay),
    ]
    more = dict(momentum=MOMENTUM) if settings.optimizer == 'SGD' else {}
    return getattr(torch.optim, settings.optimizer)(
        groups, settings.lr, weight_decay=settings.weight_decay, **more
    )
