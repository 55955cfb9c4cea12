"""What is measured of a network at the end of a round."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .networks import Network


class Seen(NamedTuple):
    """What a network computes from the training images of a round."""

    dead: dict[str, Tensor]
    """For each ReLU a bool for each channel: whether its output is 0 at every
    position of every image."""
    features: Tensor
    """``(N, C)``, the inputs of the linear layer."""


@torch.no_grad()
def look(net: Network, images: Tensor) -> Seen:
    """Run a copy of a network on images, normalized as one batch.

    Args:
        net (Network): It is unchanged, including its running statistics.
        images (Tensor): All training images of the round.
    """
    net, dead = copy.deepcopy(net).train(), {}

    def listener(name):

        def listen(module, args, output):
            dead[name] = output.amax((0, 2, 3)) <= 0

        return listen

    for name, module in net.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(listener(name))
    features = net.features(images)  # This call fills ``dead``.
    return Seen(dead, features)


def effective_rank(features: Tensor) -> float:
    """Compute exp(entropy) of the singular values, normalized to a sum of 1.

    Args:
        features (Tensor): ``(N, C)``.

    Returns:
        float: Between 1 and C, and 0 if all features are 0.
    """
    values = torch.linalg.svdvals(features.double())
    if not values.sum():
        return 0.0
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def weight_norm(net: Network) -> float:
    """Compute the L2 norm of the weights of all convolutions together."""
    return float(
        sum(
            module.weight.detach().square().sum()
            for module in net.body.modules()
            if isinstance(module, nn.Conv2d)
        ).sqrt()
    )
