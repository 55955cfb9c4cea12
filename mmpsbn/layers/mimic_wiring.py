"""What MimicNorm has to know of a model: found as the model is built.

The end of every residual branch has a learnable scalar that starts at
1.2^k / b (k = centered convs of the branch; b = 1 for the first block of the
network, 2 for the second, ...), and so has, from 1.2, every conv of a
shortcut (arXiv:2010.09278). And a MimicNorm needs a MimicConv before it.

A conv is not told its place, and parameters that appear after the constructor
are unknown to the optimizer and to DDP. So this module listens, by torch's
hook for the registration of sub-modules, for the blocks of
:data:`BRANCH_ENDS`, for what they are composed to, and for norm layers.
"""

from typing import Callable, Dict, List, NamedTuple, Optional, Type

from mmcv.cnn import is_norm
from mmdet.models.backbones.darknet import ResBlock
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from mmdet.models.layers import InvertedResidual
from mmdet.models.layers.csp_layer import DarknetBottleneck
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from mmpsbn.errors import InputError
from .mimic_norm import CENTERING_GAIN, MimicConv, MimicNorm


class BranchEnd(NamedTuple):
    """Where the residual branch of a kind of block ends."""

    name: str
    """The sub-module that ends it, a conv or a ConvModule."""
    added: Callable[[nn.Module], bool] = lambda block: True
    """Whether this block adds its branch to anything; if not, b is 1."""


#: The residual blocks that are known; their subclasses (ResNeXt's, Res2Net's)
#: are, too. Blocks of your own are added here before they are built.
BRANCH_ENDS: Dict[Type[nn.Module], BranchEnd] = {
    BasicBlock:
    BranchEnd('conv2'),
    Bottleneck:
    BranchEnd('conv3'),
    ResBlock:
    BranchEnd('conv2'),
    DarknetBottleneck:
    BranchEnd('conv2', lambda block: block.add_identity),
    InvertedResidual:
    BranchEnd('linear_conv', lambda block: block.with_res_shortcut),
}
SHORTCUT = 'downsample'


def wire(parent: nn.Module, name: str, child: Optional[nn.Module]) -> None:
    """Look at ``child``, which is about to become ``parent.name``."""
    if child is None:
        return
    # What is there is registered anew by MMEngine's revert_sync_batchnorm,
    # and wrapped by FSDP and activation checkpointing.
    if any(part is parent._modules.get(name) for part in child.modules()):
        return
    if isinstance(child, MimicNorm) or is_norm(child):
        check_pair(module_before(parent, name), child)
        return
    convs = mimic_convs(child)
    if not convs:
        return
    end = next((end for kind, end in BRANCH_ENDS.items()
                if isinstance(parent, kind)), None)
    if end is not None and name == SHORTCUT:
        for conv in convs:
            conv.set_scale(CENTERING_GAIN)
    elif end is not None and name == end.name:
        branch = convs + [
            conv for other, sibling in parent.named_children()
            if other not in (name, SHORTCUT) for conv in mimic_convs(sibling)
        ]
        centered = sum(conv.centered for conv in branch)
        convs[-1].branch = 1 if end.added(parent) else None
        convs[-1].set_scale(CENTERING_GAIN**centered)
    else:
        _number_branches(parent, name, convs)


def mimic_convs(module: nn.Module) -> List[MimicConv]:
    return [m for m in module.modules() if isinstance(m, MimicConv)]


def _number_branches(parent: nn.Module, name: str,
                     convs: List[MimicConv]) -> None:
    """Count on from the branches that the parent has already."""
    ends = [conv for conv in convs if conv.branch]
    before = max((conv.branch or 0
                  for other, sibling in parent.named_children()
                  if other != name for conv in mimic_convs(sibling)),
                 default=0)
    # Parts of a network that is put together anew count on already.
    if not ends or min(conv.branch for conv in ends) > before:
        return
    for conv in ends:
        number = conv.branch + before
        conv.set_scale(conv.start * conv.branch / number)
        conv.branch = number


def module_before(parent: nn.Module, name: str) -> Optional[nn.Module]:
    """The sub-module that was registered before ``name``."""
    last = None
    for other, module in parent.named_children():
        if other == name:
            break
        last = module
    return last


def check_pair(conv: Optional[nn.Module], norm: nn.Module) -> None:
    """Raise if a MimicNorm stands after another layer than a MimicConv.

    Or a MimicConv before another norm layer.

    Raises:
        InputError: With the setting that is missing.
    """
    if isinstance(conv, MimicConv):
        if not isinstance(norm, MimicNorm):
            raise InputError(
                "conv_cfg=dict(type='MimicConv') is followed by a "
                f'{type(norm).__name__}, which it replaces: set '
                "norm_cfg=dict(type='MimicNorm') beside it.")
    elif isinstance(norm, MimicNorm) and getattr(conv, 'weight',
                                                 None) is not None:
        kind = type(conv).__name__
        what = (
            "add conv_cfg=dict(type='MimicConv') beside it" if
            type(conv) is nn.Conv2d else 'only MimicConv does, so remove the '
            f'setting that asks for {kind} (dcn or another conv_cfg), or '
            'choose psBN or BN there')
        raise InputError(
            f"norm_cfg=dict(type='MimicNorm') follows a {kind}, which has "
            f'neither centered filters nor a bias: {what}.')


register_module_module_registration_hook(wire)
