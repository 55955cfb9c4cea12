"""torchvision's ResNets with each normalization."""

from functools import partial

from torch import nn

from benchmarks.shared.memory import PublishedMimicConv
from mmpsbn.errors import InputError
from mmpsbn.layers import BRANCH_ENDS, BranchEnd, LastBNLinear, MimicConv, PSBatchNorm2d

CLASSES = 1000
PUBLISHED = 'MimicNorm, as published'


def build(norm: str, network: str = 'resnet50') -> nn.Module:
    """Build a ResNet of torchvision with random weights.

    Args:
        norm (str): A key of ``NORMS``.
        network (str): The name of a ResNet.

    Raises:
        InputError: If torchvision cannot be imported, or has no such ResNet.
    """
    try:
        from torchvision.models import resnet
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f'torchvision cannot be imported ({error}), but this benchmark '
            'measures its ResNets. Install the version that belongs to your '
            'torch: https://pytorch.org/get-started/locally'
        ) from None
    make = vars(resnet).get(network)
    if not network.startswith('resnet') or not callable(make):
        raise InputError(
            f'--network {network} is not supported: torchvision has no ResNet of '
            'this name. Try --network resnet50.'
        )
    # The names of the last convolutions in the residual branches.
    BRANCH_ENDS.setdefault(resnet.BasicBlock, BranchEnd('conv2'))
    BRANCH_ENDS.setdefault(resnet.Bottleneck, BranchEnd('conv3'))
    return NORMS[norm](partial(make, num_classes=CLASSES))


def _mimicnorm(make, conv=MimicConv) -> nn.Module:
    """Replace the convolutions of a ResNet, and its classifier.

    torchvision builds convolutions without a parameter for their class. MimicNorm
    is the identity, so ``nn.Identity`` stands for it.
    """
    net = make(norm_layer=nn.Identity)
    for parent in list(net.modules()):
        for name, old in list(parent.named_children()):
            if type(old) is nn.Conv2d:
                new = conv(
                    old.in_channels,
                    old.out_channels,
                    old.kernel_size,
                    old.stride,
                    old.padding,
                    old.dilation,
                    old.groups,
                )
                setattr(parent, name, new)
    # Blocks get their scalars as they become parts of a stage, and the stages
    # their numbers as they become parts of the network.
    for name, stage in list(net.named_children()):
        if isinstance(stage, nn.Sequential):
            setattr(net, name, nn.Sequential(*stage))
    net.fc = LastBNLinear(net.fc.in_features, net.fc.out_features)
    return net


NORMS = {
    'BN': lambda make: make(),
    'psBN': lambda make: make(norm_layer=PSBatchNorm2d),
    'MimicNorm': _mimicnorm,
    PUBLISHED: partial(_mimicnorm, conv=PublishedMimicConv),
}
