"""The scalars of residual branches, which MimicNorm sets as a model is built.

The conv that ends a residual branch has a learnable scalar, which starts at
1.2^k / b. Here k is the number of centered convs of the branch, and b is 1 for
the first block of the network, 2 for the second, and so on. Each conv of a
shortcut has a scalar that starts at 1.2 (arXiv:2010.09278). A MimicNorm also
needs a MimicConv before it.

torch calls :func:`wire` for each module that becomes part of another one,
from the first MimicConv or MimicNorm on. A block of :data:`BRANCH_ENDS` gets
its scalars in this moment, because its constructor has finished by then.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from mmpsbn.errors import InputError
from mmpsbn.layers.mimic_norm import CENTERING_GAIN, MimicConv, MimicNorm


class BranchEnd(NamedTuple):
    """The end of the residual branch in a class of blocks."""

    name: str
    """Name of the sub-module that ends the branch, a conv or a ConvModule."""
    added: Callable[[nn.Module], bool] = lambda block: True
    """Function that returns whether a block has a residual sum. If not, b is
    1."""


#: The residual blocks that get scalars; :mod:`mmpsbn.models` adds those of
#: MMDetection. Subclasses (those of ResNeXt and Res2Net, for example) get
#: scalars, too. Add your own blocks before you build them.
BRANCH_ENDS: dict[type[nn.Module], BranchEnd] = {}
SHORTCUT = 'downsample'
#: The classes of norm layers.
NORM_TYPES = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, MimicNorm)


def wire(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    """Check or scale ``child``, which is about to become ``parent.name``.

    Args:
        parent (nn.Module): The module that gets a new part.
        name (str): The name of the part.
        child (nn.Module, optional): The part.

    Raises:
        InputError: If ``child`` is a norm layer that does not fit the conv
            before it, see :func:`check_pair`.
    """
    if child is None:
        return
    # MMEngine's revert_sync_batchnorm registers each part again, and FSDP and
    # activation checkpointing register a wrapper of it.
    old = parent._modules.get(name)
    if old is not None and any(part is old for part in child.modules()):
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
    """Return the MimicConvs of a module in the order of their registration."""
    return [m for m in module.modules() if isinstance(m, MimicConv)]


def _number_branches(parent: nn.Module, name: str, convs: list[MimicConv]) -> None:
    """Number branches after those that come before them in the parent."""
    ends = [(conv, conv.branch) for conv in convs if conv.branch]
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
    if min(branch for _, branch in ends) > before:
        return
    for conv, branch in ends:
        conv.branch = branch + before
        conv.set_scale(conv.start * branch / conv.branch)


def modules_before(parent: nn.Module, name: str) -> Iterator[nn.Module]:
    """Yield the sub-modules that come before ``name``, which may be new."""
    for other, module in parent.named_children():
        if other == name:
            return
        yield module


def module_before(parent: nn.Module, name: str) -> nn.Module | None:
    """Return the last sub-module that comes before ``name``, if there is one.

    Args:
        parent (nn.Module): The module whose parts are searched.
        name (str): The name of a part of ``parent``, or of one to be added.
    """
    return [None, *modules_before(parent, name)][-1]


def check_pair(conv: nn.Module | None, norm: nn.Module) -> None:
    """Raise unless MimicConv and MimicNorm are used together.

    Args:
        conv (nn.Module, optional): The layer before the norm layer.
        norm (nn.Module): The norm layer.

    Raises:
        InputError: If a MimicNorm follows another layer with a weight, or if
            another norm layer follows a MimicConv. The message names the
            setting that is missing.
    """
    if isinstance(conv, MimicConv):
        if not isinstance(norm, MimicNorm):
            raise InputError(
                "conv_cfg=dict(type='MimicConv') is followed by a "
                f'{type(norm).__name__}, which it replaces: set '
                "norm_cfg=dict(type='MimicNorm') along with it."
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
