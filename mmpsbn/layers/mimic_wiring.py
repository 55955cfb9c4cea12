"""The scalars of residual branches, which MimicNorm sets as a model is built.

The conv that ends a residual branch has a learnable scalar, which starts at
1.2^k / b. Here k is the number of centered convs of the branch, and b is 1 for
the first block of the network, 2 for the second, and so on. Each conv of a
shortcut has a scalar that starts at 1.2 (arXiv:2010.09278). A MimicNorm also
needs a MimicConv before it.

A conv does not know its place, and the optimizer and DDP do not know
parameters that appear after the constructor. Therefore this module uses
torch's hook for the registration of sub-modules. It sets the scalars of a
block of :data:`BRANCH_ENDS` when the block becomes part of another module: by
then, the constructor of the block has finished.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.module import register_module_module_registration_hook

from mmpsbn.errors import InputError
from mmpsbn.layers.mimic_norm import CENTERING_GAIN, MimicConv, MimicNorm


class BranchEnd(NamedTuple):
    """Where the residual branch of a kind of block ends."""

    name: str
    """Name of the sub-module that ends the branch, a conv or a ConvModule."""
    added: Callable[[nn.Module], bool] = lambda block: True
    """Whether a block adds its branch to anything. If not, b is 1."""


#: The known residual blocks; :mod:`mmpsbn.models` adds those of MMDetection.
#: Their subclasses (those of ResNeXt and Res2Net, for example) are known, too.
#: Add your own blocks before you build them.
BRANCH_ENDS: dict[type[nn.Module], BranchEnd] = {}
SHORTCUT = 'downsample'
#: The classes of norm layers.
NORM_TYPES = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, MimicNorm)


def wire(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """Look at ``child``, which is about to become ``parent.name``."""
    if child is None:
        return
    # What is there is registered again by MMEngine's revert_sync_batchnorm,
    # and wrapped by FSDP and activation checkpointing.
    if any(part is parent._modules.get(name) for part in child.modules()):
        return
    if isinstance(child, NORM_TYPES):
        check_pair(module_before(parent, name), child)
        return
    end = next(
        (end for kind, end in BRANCH_ENDS.items() if isinstance(child, kind)), None
    )
    if end is not None:
        _scale_block(child, end)
    _number_branches(parent, name, mimic_convs(child))


def _scale_block(block: nn.Module, end: BranchEnd) -> None:
    """Give a block its scalars, unless it has them from an earlier parent."""
    # Subclasses may have other convs.
    last = mimic_convs(getattr(block, end.name, nn.Identity()))[-1:]
    if not last or last[0].scale is not None:
        return
    branch = [
        conv
        for name, part in block.named_children()
        if name != SHORTCUT
        for conv in mimic_convs(part)
    ]
    last[0].branch = 1 if end.added(block) else None
    last[0].set_scale(CENTERING_GAIN ** sum(conv.centered for conv in branch))
    for conv in mimic_convs(getattr(block, SHORTCUT, None) or nn.Identity()):
        conv.set_scale(CENTERING_GAIN)


def mimic_convs(module: nn.Module) -> list[MimicConv]:
    """Return the MimicConvs of a module, in their order."""
    return [m for m in module.modules() if isinstance(m, MimicConv)]


def _number_branches(parent: nn.Module, name: str, convs: list[MimicConv]) -> None:
    """Continue the numbers of the branches that come before in the parent."""
    ends = [conv for conv in convs if conv.branch]
    if not ends:
        return
    before = max(
        (
            conv.branch or 0
            for sibling in modules_before(parent, name)
            for conv in mimic_convs(sibling)
        ),
        default=0,
    )
    # The parts of a network that is composed again are numbered already.
    if min(conv.branch for conv in ends) > before:
        return
    for conv in ends:
        number = conv.branch + before
        conv.set_scale(conv.start * conv.branch / number)
        conv.branch = number


def modules_before(parent: nn.Module, name: str) -> Iterator[nn.Module]:
    """The sub-modules that come before ``name``, which may be a new one."""
    for other, module in parent.named_children():
        if other == name:
            return
        yield module


def module_before(parent: nn.Module, name: str) -> nn.Module | None:
    """The last sub-module that comes before ``name``."""
    return next(iter([*modules_before(parent, name)][-1:]), None)


def check_pair(conv: nn.Module | None, norm: nn.Module) -> None:
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
                "norm_cfg=dict(type='MimicNorm') beside it."
            )
    elif isinstance(norm, MimicNorm) and getattr(conv, 'weight', None) is not None:
        kind = type(conv).__name__
        what = (
            "add conv_cfg=dict(type='MimicConv') next to it, or choose psBN "
            'or BN for a part of the model that ignores conv_cfg (CSPNeXt and '
            'ResNeSt do)'
            if type(conv) is nn.Conv2d
            else 'only MimicConv does, so remove the '
            f'setting that asks for {kind} (dcn or another conv_cfg), or '
            'choose psBN or BN there'
        )
        raise InputError(
            f"norm_cfg=dict(type='MimicNorm') follows a {kind}, which has "
            f'neither centered filters nor a bias: {what}.'
        )


register_module_module_registration_hook(wire)
