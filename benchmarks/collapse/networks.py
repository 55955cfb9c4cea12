"""The classifiers: convs, norm layers and rectifiers of MMCV and MMDetection.

``conv`` is four 3 x 3 convs of 32 channels, each with a norm layer and a
rectifier; ``resnet`` is a stem and three of MMDetection's basic blocks, of 16,
32 and 64 channels. Both end with the mean over positions and a linear layer.
"""

from mmcv.cnn import ConvModule
from mmdet.models.backbones.resnet import BasicBlock
from mmdet.models.layers import ResLayer
from mmengine.model import kaiming_init
from torch import Tensor, nn
from torch.nn import functional as F

import mmpsbn  # noqa: F401  Registers psBN.
from mmpsbn.analysis.collapse import norm_layers

NETWORKS = ('conv', 'resnet')
WIDTH, STRIDES = 32, (1, 2, 1, 1)
STAGES = ((16, 1), (32, 2), (64, 2))  # Channels and stride.


class SplitLeakyReLU(nn.Module):
    """Leaky ReLU, as a ReLU of each side.

    ChannelWatch judges the first: a channel is dead that is never positive.

    Args:
        slope (float): Of the negative side.
    """

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(input) - self.slope * F.relu(-input)


class Classifier(nn.Module):
    """A network of ``NETWORKS``.

    Args:
        network (str): Its name.
        channels (int): Of the images.
        classes (int): Number of them.
        alpha (float): Of psBN; 0 for BN.
        gamma (float): Where the scales of all norm layers start.
        slope (float): Of the rectifier's negative side; MMDetection's blocks
            have ReLU, which is 0.
    """

    def __init__(self, network: str, channels: int, classes: int,
                 alpha: float, gamma: float, slope: float) -> None:
        super().__init__()
        norm = dict(type='psBN', alpha=alpha) if alpha else dict(type='BN')
        self.body, width = nn.Sequential(), channels
        if network == 'conv':
            for stride in STRIDES:
                self.body.extend([
                    ConvModule(width, WIDTH, 3, stride, 1, norm_cfg=norm,
                               act_cfg=None),
                    SplitLeakyReLU(slope) if slope else nn.ReLU(inplace=True)
                ])
                width = WIDTH
        else:
            width = STAGES[0][0]
            self.body.append(
                ConvModule(channels, width, 3, padding=1, norm_cfg=norm))
            for planes, stride in STAGES:
                self.body.append(
                    ResLayer(BasicBlock, width, planes, 1, stride,
                             norm_cfg=norm))
                width = planes
        self.fc = nn.Linear(width, classes)
        for module in self.body.modules():
            if isinstance(module, nn.Conv2d):
                kaiming_init(module)
        for _, layer in norm_layers(self):
            nn.init.constant_(layer.weight, gamma)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images).mean((2, 3)))
