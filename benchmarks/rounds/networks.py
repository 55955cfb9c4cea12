"""The two networks, with the layers of each method."""

import math
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn

from mmpsbn.layers import LastBNLinear, MimicConv, MimicNorm, PSBatchNorm2d
from mmpsbn.layers.mimic_norm import CENTERING_GAIN

PLAIN = ((32, 1), (32, 2), (64, 2), (64, 1))  # Channels and stride.
STEM, BLOCKS = 16, ((16, 1), (32, 2), (64, 2))
GROUPS = 8


class ConvUnit(nn.Sequential):
    """A convolution and its norm layer, with or without a ReLU."""

    def __init__(
        self,
        method: str,
        inputs: int,
        outputs: int,
        stride: int,
        kernel: int = 3,
        relu: bool = True,
    ) -> None:
        shape = inputs, outputs, kernel, stride, kernel // 2
        if method == 'MimicNorm':
            conv, norm = MimicConv(*shape), MimicNorm(outputs)
        else:
            conv = nn.Conv2d(*shape, bias=False)
            nn.init.kaiming_normal_(conv.weight)
            norm = (
                nn.GroupNorm(GROUPS, outputs)
                if method == 'GN'
                else PSBatchNorm2d(outputs)
                if method == 'psBN'
                else nn.BatchNorm2d(outputs)
            )
        super().__init__(OrderedDict(conv=conv, norm=norm))
        if relu:
            self.relu = nn.ReLU()


class Block(nn.Module):
    """A residual block of two convolutions, the number-th of its network."""

    def __init__(
        self, method: str, inputs: int, outputs: int, stride: int, number: int
    ) -> None:
        super().__init__()
        self.first = ConvUnit(method, inputs, outputs, stride)
        self.second = ConvUnit(method, outputs, outputs, 1, relu=False)
        self.shortcut = (
            nn.Identity()
            if inputs == outputs
            else ConvUnit(method, inputs, outputs, stride, kernel=1, relu=False)
        )
        self.relu = nn.ReLU()
        if method == 'MimicNorm':
            self.second.conv.set_scale(CENTERING_GAIN**2 / number)
            if inputs != outputs:
                self.shortcut.conv.set_scale(CENTERING_GAIN)

    def forward(self, input: Tensor) -> Tensor:
        return self.relu(self.second(self.first(input)) + self.shortcut(input))


class Network(nn.Module):
    """A body, the mean over positions, and a linear layer for two classes.

    Args:
        network (str): ``'plain'`` or ``'residual'``.
        method (str): The method, which determines the layers.
        channels (int): Channels of the images.
    """

    def __init__(self, network: str, method: str, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential()
        #: Units whose output only one layer reads, with this layer.
        self.read_once: list[tuple[ConvUnit, nn.Module]] = []
        if network == 'plain':
            width = channels
            for outputs, stride in PLAIN:
                self.body.append(ConvUnit(method, width, outputs, stride))
                width = outputs
            self.read_once += zip(self.body, [unit.conv for unit in self.body[1:]])
        else:
            self.body.append(ConvUnit(method, channels, STEM, 1))
            width = STEM
            for number, (outputs, stride) in enumerate(BLOCKS, 1):
                block = Block(method, width, outputs, stride, number)
                self.body.append(block)
                self.read_once.append((block.first, block.second.conv))
                width = outputs
        self.fc = (LastBNLinear if method == 'MimicNorm' else nn.Linear)(width, 2)
        if network == 'plain':
            self.read_once.append((self.body[-1], self.fc))

    def features(self, images: Tensor) -> Tensor:
        return self.body(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images))

    def reset_classifier(self) -> None:
        """Reset the linear layer to 0.

        The last BN divides by the standard deviation of the logits, which
        weights of 0 do not have. They are He-normal.
        """
        self.fc.reset_parameters()
        nn.init.zeros_(self.fc.bias)
        if isinstance(self.fc, LastBNLinear):
            nn.init.normal_(self.fc.weight, 0, math.sqrt(2 / self.fc.in_features))
        else:
            nn.init.zeros_(self.fc.weight)


def seed_torch(seed: int, number: int) -> None:
    """Seed torch for a round."""
    state = np.random.SeedSequence([seed, number, 1]).generate_state(1)
    torch.manual_seed(int(state[0]))


def new_network(
    network: str, method: str, channels: int, seed: int, number: int
) -> Network:
    """Build a network with initial weights that depend on seed and round.

    Args:
        network (str): ``'plain'`` or ``'residual'``.
        method (str): The method.
        channels (int): Channels of the images.
        seed (int): The seed of the run.
        number (int): The round from which the network is trained.
    """
    seed_torch(seed, number)
    return Network(network, method, channels).to(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(net: Network, images: Tensor, labels: Tensor) -> float:
    """Compute the share of images that are classified correctly."""
    net.eval()
    return float((net(images).argmax(1) == labels).double().mean())
