"""One training, from its settings to its result."""

import copy
import hashlib
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.shared.data import load
from benchmarks.shared.networks import Classifier, Layers
from benchmarks.shared.settings import key_of
from benchmarks.shared.training import (
    AUGMENTED,
    BATCHES,
    EVALUATED,
    MOMENTUM,
    accuracy,
    fit,
)
from mmpsbn.analysis import ChannelWatch
from mmpsbn.analysis.collapse import LEAST_GAMMA, gamma_and_shift, norm_layers
from mmpsbn.layers import PSBatchNorm2d

from .experiments import Settings

DEPTHS = dict(digits=dict(conv=4, resnet=7), cifar10=dict(conv=4, resnet=19))


def train(
    settings: Settings, root: str | None, weights: Path, keep: bool, device: str = 'cpu'
) -> dict:
    """Train a classifier on one thread.

    Equal settings give equal results on one machine's CPU.

    Args:
        settings (Settings): Of the training.
        root (str, optional): The folder of CIFAR-10.
        weights (Path): The folder of weights that others start from.
        keep (bool): Whether these are kept there.
        device (str): To train on. Defaults to ``'cpu'``.

    Returns:
        dict: ``accuracy`` on the test images, ``loss`` of the last batch,
        ``diverged``, ``seconds`` of CPU time, and of every check ``steps``,
        ``dead``, ``died`` and ``came_back``: the numbers of channels that are
        0 behind their ReLU on all training images, that have ever been at a
        check, and that have been and are not. ``channels`` is the number of
        those judged; ``sums`` has dead channels and all that are judged by a
        residual sum, at the end; ``small_gamma`` the channels with a gamma
        below 1e-3 in size, of all norm layers.
    """
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    start = time.process_time()
    data = load(settings.data, root, settings.half).to(device)
    net = classifier(settings, data.train_images.shape[1], data.classes).to(device)
    if settings.start:
        _load(net, settings, weights)
    batch = BATCHES[settings.data]
    steps = settings.epochs * (len(data.train_labels) // batch)
    times = settings.checks
    due = {round(steps * index / times) for index in range(1, times + 1)}
    checks = Checks(net, data.train_images)
    checks.take(0)
    loss = fit(
        net,
        data,
        _optimizer(net, settings),
        settings.epochs,
        batch,
        settings.data in AUGMENTED,
        lambda step: step in due and checks.take(step),
    )
    if keep:
        torch.save(net.state_dict(), weights / file_of(settings))
    return dict(
        accuracy=accuracy(net, data),
        loss=loss,
        diverged=loss is None,
        seconds=round(time.process_time() - start, 2),
        small_gamma=sum(
            int((gamma_and_shift(layer)[0].abs() < LEAST_GAMMA).sum())
            for _, layer in norm_layers(net)
        ),
        **checks.found,
    )


def classifier(settings: Settings, channels: int, classes: int) -> Classifier:
    """The network of a training, as it starts from nothing."""
    layers = Layers(
        partial(PSBatchNorm2d, alpha=settings.alpha)
        if settings.alpha
        else nn.BatchNorm2d
    )
    net = Classifier(
        settings.network,
        DEPTHS[settings.data][settings.network],
        channels,
        classes,
        layers,
        settings.slope,
    )
    for _, layer in norm_layers(net):
        nn.init.constant_(layer.weight, settings.gamma)
    return net


class Checks:
    """The channels of a network, looked at during its training."""

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        self.net, self.images = net, images
        self.found: dict[str, object] = dict(steps=[], dead=[], died=[], came_back=[])
        self._ever: Tensor | None = None

    def take(self, step: int) -> None:
        # Normalized by these images, as in training: running statistics lag
        # behind the weights, and are not to be moved by looking.
        net = copy.deepcopy(self.net).train()
        watch = ChannelWatch(net)
        with torch.no_grad(), watch:
            for images in self.images.split(EVALUATED):
                net(images)
        single, sums = [], []
        for output in watch.outputs.values():
            (sums if output.after_sum else single).append(output.dead)
        dead = torch.cat(single)
        ever = dead if self._ever is None else self._ever | dead
        self._ever = ever
        for name, value in dict(
            steps=step,
            dead=int(dead.sum()),
            died=int(ever.sum()),
            came_back=int((ever & ~dead).sum()),
        ).items():
            self.found[name].append(value)
        self.found['channels'] = len(dead)
        self.found['sums'] = [
            sum(int(channels.sum()) for channels in sums),
            sum(map(len, sums)),
        ]


def file_of(settings: Settings) -> str:
    """Name of the file with a training's weights."""
    return hashlib.sha256(key_of(settings).encode()).hexdigest()[:16] + '.pth'


def _load(net: nn.Module, settings: Settings, weights: Path) -> None:
    """Start from another training, except for a classifier of others."""
    state = torch.load(weights / file_of(settings.start), weights_only=True)
    if settings.half != settings.start.half:
        state.update(net.fc.state_dict(prefix='fc.'))
    net.load_state_dict(state)


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
