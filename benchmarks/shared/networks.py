"""The classifiers, in plain torch.

``conv`` is 3 x 3 convolutions of 32 channels, each with a norm layer and a
rectifier, the second one with stride 2. ``resnet`` is a stem and three stages
of basic blocks with 16, 32 and 64 channels. Both end with the mean over
positions and a linear layer. Their depth is the number of 3 x 3 convolutions.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from mmpsbn.layers import BRANCH_ENDS, BranchEnd

WIDTH = 32
STAGES = ((16, 1), (32, 2), (64, 2))  # Channels and stride.


class Layers(NamedTuple):
    """What a network is made of."""

    norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    conv: Callable[..., nn.Module] = partial(nn.Conv2d, bias=False)
    """Those that do not initialize themselves start as He et al. have it."""
    linear: Callable[[int, int], nn.Module] = nn.Linear
    """The layer of the logits."""


class BasicBlock(nn.Module):
    """A residual block of two 3 x 3 convolutions.

    Args:
        layers (Layers): What it is made of.
        inputs (int): Channels of the input.
        outputs (int): Channels of the output.
        stride (int): Of the first convolution and the shortcut.
    """

    def __init__(self, layers: Layers, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = layers.conv(inputs, outputs, 3, stride, 1)
        self.bn1 = layers.norm(outputs)
        self.conv2 = layers.conv(outputs, outputs, 3, 1, 1)
        self.bn2 = layers.norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                layers.conv(inputs, outputs, 1, stride), layers.norm(outputs)
            )

    def forward(self, input: Tensor) -> Tensor:
        branch = self.relu(self.bn1(self.conv1(input)))
        branch = self.bn2(self.conv2(branch))
        shortcut = input if self.downsample is None else self.downsample(input)
        return self.relu(branch + shortcut)


# MimicNorm scales the ends of residual branches.
BRANCH_ENDS[BasicBlock] = BranchEnd('conv2')


class Classifier(nn.Module):
    """A plain or a residual network.

    Args:
        network (str): ``'conv'`` or ``'resnet'``.
        depth (int): Its 3 x 3 convolutions; of ``resnet`` 1 and a multiple of
            6.
        channels (int): Of the images.
        classes (int): Number of them.
        layers (Layers): What it is made of.
        slope (float): Of the rectifier's negative side; residual blocks have
            ReLU, which is 0.
    """

    def __init__(
        self,
        network: str,
        depth: int,
        channels: int,
        classes: int,
        layers: Layers,
        slope: float = 0.0,
    ) -> None:
        super().__init__()
        self.body, width = nn.Sequential(), channels

        def add(outputs, stride, rectifier):
            unit = nn.Sequential()
            unit.add_module('conv', layers.conv(width, outputs, 3, stride, 1))
            unit.add_module('bn', layers.norm(outputs))
            self.body.extend([unit, rectifier])

        if network == 'conv':
            for index in range(depth):
                add(
                    WIDTH,
                    2 if index == 1 else 1,
                    nn.LeakyReLU(slope, True) if slope else nn.ReLU(inplace=True),
                )
                width = WIDTH
        else:
            add(STAGES[0][0], 1, nn.ReLU(inplace=True))
            width = STAGES[0][0]
            for outputs, stride in STAGES:
                for number in range(depth // (2 * len(STAGES))):
                    self.body.append(
                        BasicBlock(layers, width, outputs, 1 if number else stride)
                    )
                    width = outputs
        self.fc = layers.linear(width, classes)
        for module in self.body.modules():
            if type(module) is nn.Conv2d:
                nn.init.kaiming_normal_(module.weight, mode='fan_out')

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images).mean((2, 3)))
