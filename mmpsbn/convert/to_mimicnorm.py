"""From a model with BN to one with MimicNorm, on weights.

BN folds into the conv before it. Centering the filters then changes what the
model computes, because their inputs have a positive mean; most of that change
is a constant for each channel, which a few images measure and the biases take
back. What the last BN needs is measured on the same images.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmpsbn.detectors.outputs import BatchRunner, distance
from mmpsbn.errors import InputError
from mmpsbn.layers import MimicConv, MimicNorm
from mmpsbn.layers.last_bn import LastBN
from mmpsbn.layers.mimic_wiring import mimic_convs, module_before


class Pair(NamedTuple):
    """A conv and the norm layer after it, by their names in the model."""

    conv: str
    norm: str


def find_pairs(model: nn.Module) -> list[Pair]:
    """The pairs of MimicConv and MimicNorm of a model.

    Raises:
        InputError: If the convolution of a norm layer is not known, or if it
            has several norm layers.
    """
    pairs: list[Pair] = []
    names = {id(module): name for name, module in model.named_modules()}
    for name, module in model.named_modules():
        if isinstance(module, MimicNorm):
            parent, _, own = name.rpartition('.')
            conv = module_before(model.get_submodule(parent), own)
            if not isinstance(conv, MimicConv):
                raise InputError(
                    f'{name} cannot be converted: no MimicConv comes before it in its '
                    'module. Place each MimicNorm after its MimicConv.'
                )
            own = names[id(conv)]
            for pair in pairs:
                if pair.conv == own:
                    raise InputError(
                        f'{name} cannot be converted: it shares {own} with '
                        f'{pair.norm}, and a convolution takes over only one norm '
                        'layer. Choose a part that shares its norm layers, too '
                        '(RetinaHead instead of RetinaSepBNHead).'
                    )
            pairs.append(Pair(own, name))
    return pairs


@torch.no_grad()
def fold(source: nn.Module, target: nn.Module) -> None:
    """Copy a BN model's weights, with each BN folded into its conv.

    Scalars become 1: what they scale is in the weights.

    Args:
        source (nn.Module): With BN, or psBN, where the target has MimicNorm.
        target (nn.Module): Of the same names.
    """
    state = {
        name: value
        for name, value in source.state_dict().items()
        if name in target.state_dict()
    }
    target.load_state_dict({**target.state_dict(), **state})
    for pair in find_pairs(target):
        conv = source.get_submodule(pair.conv)
        bn = source.get_submodule(pair.norm)
        mimic = target.get_submodule(pair.conv)
        fused = fuse_conv_bn_eval(conv, bn)
        mimic.weight.copy_(fused.weight)
        mimic.bias.copy_(fused.bias)
        mimic.center_()
    for mimic in mimic_convs(target):
        if mimic.scale is not None:
            mimic.scale.fill_(1)


class ChannelStatistics:
    """Mean and variance of each channel, over the calls of a module."""

    def __init__(self) -> None:
        self.calls = self.count = self.sum = self.squares = 0

    def add(self, output: Tensor) -> None:
        output = (
            output.double().flatten(2)
            if output.dim() > 2
            else output.double().unsqueeze(2)
        )
        self.calls += 1
        self.count += output.shape[0] * output.shape[2]
        self.sum = self.sum + output.sum((0, 2))
        self.squares = self.squares + output.square().sum((0, 2))

    @property
    def mean(self) -> Tensor:
        return self.sum / self.count

    @property
    def var(self) -> Tensor:
        return (self.squares / self.count - self.mean.square()).clamp(min=0)


@contextmanager
def listen_to(model: nn.Module, names: Sequence[str], hook) -> Iterator[None]:
    """Call ``hook(name, output)`` for the outputs of some sub-modules."""
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: hook(name, output)
        )
        for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def recalibrate(source: nn.Module, target: nn.Module, run) -> None:
    """Give the target's channels the means that they have in the source.

    Layer by layer in the order of the forward, each after those before it
    have their means.

    Args:
        source (nn.Module): The model with BN.
        target (nn.Module): The model with MimicNorm, with the same names.
        run (callable): ``run(model)`` runs it on the images to measure on.

    Raises:
        InputError: If a run does not call all layers.
    """
    pairs = {pair.norm: pair.conv for pair in find_pairs(target)}
    convs = {}
    for name, module in target.named_modules():
        if name in pairs:
            convs[name] = target.get_submodule(pairs[name])
        elif isinstance(module, MimicConv) and name not in pairs.values():
            convs[name] = module  # No norm layer follows.
    wanted = {name: ChannelStatistics() for name in convs}
    with listen_to(source, list(convs), lambda name, output: wanted[name].add(output)):
        run(source)
    _check_called(wanted)
    # A module that is called once is corrected while the model runs; one that
    # is called for each level of a pyramid takes a run of its own.
    once = [name for name in convs if wanted[name].calls == 1]
    several = [name for name in convs if wanted[name].calls > 1]

    def correct(name, output):
        dims = [dim for dim in range(output.dim()) if dim != 1]
        shift = (wanted[name].mean - output.double().mean(dims)).to(output.dtype)
        convs[name].bias.add_(shift)
        return output + shift.view(1, -1, *[1] * (output.dim() - 2))

    with listen_to(target, once, correct):
        run(target)
    for name in several:
        found = ChannelStatistics()
        with listen_to(target, [name], lambda name, output: found.add(output)):
            run(target)
        convs[name].bias.add_(
            (wanted[name].mean - found.mean).to(convs[name].bias.dtype)
        )
    calibrate_last_bn(target, run)


@torch.no_grad()
def calibrate_last_bn(model: nn.Module, run) -> None:
    """Give last BNs the statistics of their logits, and keep the outputs.

    Args:
        model (nn.Module): Its last BNs are the identity, see reset_last_bn.
        run (callable): ``run(model)`` runs it on the images to measure on.

    Raises:
        InputError: If a run does not call all last BNs.
    """
    layers = find_last_bns(model)
    found = {name: ChannelStatistics() for name in layers}
    with listen_to(model, list(layers), lambda name, output: found[name].add(output)):
        run(model)
    _check_called(found)
    for name, layer in layers.items():
        mean = found[name].mean.to(layer.bias.dtype)
        # A linear layer gives W x + b, a conv W x alone.
        layer.running_mean.copy_(
            mean - layer.bias if isinstance(layer, nn.Linear) else mean
        )
        layer.running_var.copy_(found[name].var)
        layer.gain.copy_((layer.running_var + layer.eps).sqrt())
        layer.bias.add_(layer.running_mean)


def _check_called(found: dict[str, ChannelStatistics]) -> None:
    idle = [name for name, statistics in found.items() if not statistics.calls]
    if idle:
        raise InputError(
            f'a prediction does not use {len(idle)} layers of the model (for example '
            f'{idle[0]}), so their biases cannot be set. Give these layers no '
            'MimicNorm. If the model contains a detector, as semi-supervised methods '
            'do, convert a checkpoint of that detector with its own config.'
        )


def find_last_bns(model: nn.Module) -> dict[str, LastBN]:
    """Return the last BNs of a model by their names."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LastBN)
    }


@torch.no_grad()
def reset_last_bn(model: nn.Module) -> None:
    """Make the last BNs of a model the identity, in evaluation mode.

    Raises:
        InputError: If one has affine=False.
    """
    for name, layer in find_last_bns(model).items():
        if layer.gain is None:
            raise InputError(
                f'{name} is a last BN with affine=False, which '
                'cannot take over the scores of a trained head; '
                'leave affine True.'
            )
        layer.running_mean.zero_()
        layer.running_var.fill_(1 - layer.eps)
        layer.gain.fill_(1)


class Converted(NamedTuple):
    """A MimicNorm model's weights, and how far its outputs have moved."""

    state_dict: dict[str, Tensor]
    before: float
    """Relative distance of the outputs before the biases are calibrated."""
    after: float
    """And after."""
    reinitialized: Sequence[str] = ()
    """Layers left out, since the detector was one of other classes."""


def to_mimicnorm(source: nn.Module, target: nn.Module, data: dict) -> Converted:
    """Make a MimicNorm model's weights from those of one with BN.

    Args:
        source (nn.Module): A detector or backbone with BN or psBN.
        target (nn.Module): Of the same names, with MimicNorm; changed.
        data (dict): A batch of images to calibrate on, see load_images.

    Raises:
        InputError: If a norm layer cannot be converted.
    """
    source.eval(), target.eval()
    fold(source, target)
    reset_last_bn(target)
    run = BatchRunner(data)
    expected = run(source)
    before = distance(run(target), expected)
    recalibrate(source, target, run)
    return Converted(target.state_dict(), before, distance(run(target), expected))
