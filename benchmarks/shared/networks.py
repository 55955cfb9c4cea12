"""The classifiers: convs, norm layers and rectifiers of MMCV and MMDetection.

``conv`` is 3 x 3 convs of 32 channels, each with a norm layer and a rectifier,
the second one with stride 2; ``resnet`` is a stem and three stages of
MMDetection's basic blocks, of 16, 32 and 64 channels. Both end with the mean
over positions and a linear layer. Their depth is the number of 3 x 3 convs.
"""

from typing import Callable, Optional

from mmcv.cnn import ConvModule
from mmdet.models.backbones.resnet import BasicBlock
from mmdet.models.layers import ResLayer
from mmengine.model import kaiming_init
from torch import Tensor, nn
from torch.nn import functional as F

import mmpsbn  # noqa: F401  Registers our layers.

WIDTH = 32
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
    """A plain or a residual network.

    Args:
        network (str): ``'conv'`` or ``'resnet'``.
        depth (int): Its 3 x 3 convs; of ``resnet`` 1 and a multiple of 6.
        channels (int): Of the images.
        classes (int): Number of them.
        norm_cfg (dict): Of the norm layers.
        conv_cfg (dict, optional): Of the convs. Those that do not initialize
            themselves start as He et al. have it.
        linear (callable): Makes the layer of the logits.
        slope (float): Of the rectifier's negative side; MMDetection's blocks
            have ReLU, which is 0.
    """

    def __init__(self,
                 network: str,
                 depth: int,
                 channels: int,
                 classes: int,
                 norm_cfg: dict,
                 conv_cfg: Optional[dict] = None,
                 linear: Callable[[int, int], nn.Module] = nn.Linear,
                 slope: float = 0.) -> None:
        super().__init__()
        layers = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg)
        self.body, width = nn.Sequential(), channels
        if network == 'conv':
            for index in range(depth):
                self.body.extend([
                    ConvModule(width, WIDTH, 3, 2 if index == 1 else 1, 1,
                               act_cfg=None, **layers),
                    SplitLeakyReLU(slope) if slope else nn.ReLU(inplace=True)
                ])
                width = WIDTH
        else:
            width = STAGES[0][0]
            self.body.append(
                ConvModule(channels, width, 3, padding=1, **layers))
            blocks = depth // (2 * len(STAGES))
            for planes, stride in STAGES:
                self.body.append(
                    ResLayer(BasicBlock, width, planes, blocks, stride,
                             **layers))
                width = planes
        self.fc = linear(width, classes)
        for module in self.body.modules():
            if type(module) is nn.Conv2d:
                kaiming_init(module)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images).mean((2, 3)))
