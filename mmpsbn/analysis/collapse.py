"""Collapsed channels, found by their outputs or by the parameters.

Zhou et al., "How Does BN Increase Collapsed Neural Network Filters?",
arXiv:2001.11216, define filter collapse: gamma goes to 0 and the shift is not
above 0. The ReLU after the norm layer then returns 0 for every input, and its
gradient is 0. Under Leaky ReLU, a collapsed channel is one that is never positive.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from mmpsbn.layers import NORM_TYPES

# A channel with a smaller probability is dead by its parameters.
LEAST_PROBABILITY = 1e-4
LEAST_GAMMA = 1e-3  # A smaller gamma has vanished.
RELUS = {'relu', 'relu_', 'relu6'}
LEAKY_RELUS = {'leaky_relu', 'leaky_relu_'}
CLIPS = {'hardtanh', 'hardtanh_'}  # ReLU6 calls one, from 0 to 6.
NORMS = {'batch_norm', 'group_norm', 'instance_norm'}
# Activations that are not rectifiers. Losses do not call them.
OTHERS = {
    'elu': 'ELU',
    'gelu': 'GELU',
    'hardswish': 'Hardswish',
    'mish': 'Mish',
    'silu': 'SiLU',
}
SUMS = {'add', 'add_', '__add__', '__iadd__', '__radd__'}


class Origin(NamedTuple):
    """The norm layer that a tensor comes from."""

    layer: str
    """The norm layer whose output the tensor, or its first summand, is."""
    summed: bool
    """Whether the tensor is a sum."""


class Outputs(NamedTuple):
    """The outputs of a norm layer's channels after their rectifier."""

    dead: Tensor
    """Bool, ``(C,)``: whether a channel is above 0 at no position of any
    image."""
    after_sum: bool
    """Whether a residual sum is between the norm layer and the rectifier."""
    leaky: bool = False
    """Whether the rectifier is Leaky ReLU."""


def norm_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the names and modules of a model's norm layers with channels.

    Args:
        model (nn.Module): With BN, psBN, GN or MimicNorm, or several.
    """
    for name, module in model.named_modules():
        if isinstance(module, NORM_TYPES) and channels_of(module):
            yield name, module


def keeps_statistics(model: nn.Module, name: str) -> bool:
    """Return whether a batch norm has fixed statistics next to a trained filter.

    ``norm_eval=True`` fixes them. The filter can then die without a change of
    gamma and beta. In frozen stages, it is fixed, too.

    Args:
        model (nn.Module): A model in the mode in which it is trained.
        name (str): The name of the norm layer.
    """
    norm = model.get_submodule(name)
    if not isinstance(norm, _BatchNorm) or norm.training:
        return False
    return any(
        parameter.requires_grad
        for layer in model.get_submodule(name.rpartition('.')[0]).children()
        if not isinstance(layer, _BatchNorm)
        for parameter in layer.parameters(recurse=False)
    )


def channels_of(norm: nn.Module) -> int:
    """Return the channels of a norm layer, 0 for LayerNorm.

    Args:
        norm (nn.Module): The norm layer.
    """
    return getattr(norm, 'num_features', getattr(norm, 'num_channels', 0))


def stage_of(name: str) -> str:
    """Return the stage of a layer, the first two parts of its name.

    Args:
        name (str): For example, ``backbone.layer1.0.bn1``.
    """
    return '.'.join(name.split('.')[:2])


class ChannelWatch(TorchFunctionMode):
    """A context manager that finds the dead channels of a model on data.

    A channel is *dead* if the output of the rectifier (ReLU, ReLU6 or Leaky
    ReLU) that follows its norm layer is above 0 at no position of any image,
    in all forward passes and all calls of the layer within ``with watch:
    ...``. If a residual sum is between the norm layers and the rectifier, the
    channels of the sum are judged, which
    another summand may keep alive. They count once, for the norm layer that
    is the first summand. Norm layers whose output the sum broadcasts are
    ignored. Norm layers that no rectifier follows, directly or after sums,
    are not judged.

    The watch sees the functions that are called on tensors, so it finds the
    rectifier wherever it is called. It costs one comparison of an activation
    for each rectifier.

    Args:
        model (nn.Module): With BN, psBN, GN or MimicNorm, or several.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = dict(norm_layers(model))
        #: The outputs of each norm layer that a rectifier followed.
        self.outputs: dict[str, Outputs] = {}
        #: The names of activations other than rectifiers in the model.
        self.others: set[str] = set()
        self._origins = WeakIdKeyDictionary()
        self._handles: list[RemovableHandle] = []
        # The norm layer whose forward pass runs, and whether it has normalized.
        self._inside: str | None = None
        self._normalized = False

    def __enter__(self) -> 'ChannelWatch':
        for name, layer in self.layers.items():
            self._handles += [
                layer.register_forward_pre_hook(partial(self._enter_layer, name)),
                layer.register_forward_hook(partial(self._leave_layer, name)),
            ]
        return super().__enter__()

    def __exit__(self, *error) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._inside = None
        self._origins = WeakIdKeyDictionary()
        super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, '__name__', '')
        origin = None
        leaky = name in LEAKY_RELUS
        if leaky or name in RELUS or (name in CLIPS and _from_zero(args, kwargs)):
            origin = self._origins.pop(_input(args, kwargs), None)
        elif name in OTHERS:
            self.others.add(OTHERS[name])
        elif name == 'sigmoid' and _input(args, kwargs) in self._origins:
            self.others.add('Swish')
        result = func(*args, **kwargs)
        if origin is not None:
            self._note(origin, result, leaky)
        elif name in NORMS and self._inside is not None:
            self._origins[result] = Origin(self._inside, False)
            self._normalized = True
        elif name in SUMS:
            self._add([*args, *kwargs.values()], result)
        return result

    def _enter_layer(self, name: str, *args) -> None:
        self._inside, self._normalized = name, False

    def _leave_layer(self, name: str, module, args, output) -> None:
        # A layer may contain an activation. Then its output is not the result of
        # the normalization, which __torch_function__ has recorded.
        if not self._normalized:
            self._origins[output] = Origin(name, False)
        self._inside = None

    def _add(self, summands: list, result: Tensor) -> None:
        for summand in summands:
            if (
                isinstance(summand, Tensor)
                and summand in self._origins
                and summand.dim() == result.dim()
                and summand.shape[1] == result.shape[1]
            ):
                layer = self._origins[summand].layer
                self._origins[result] = Origin(layer, True)
                return

    @torch.no_grad()
    def _note(self, origin: Origin, output: Tensor, leaky: bool) -> None:
        if not output.numel():
            return
        # NaN is not dead.
        dead = (output.detach() <= 0).transpose(0, 1).flatten(1).all(1)
        if origin.layer in self.outputs:
            dead &= self.outputs[origin.layer].dead
        self.outputs[origin.layer] = Outputs(dead, origin.summed, leaky)


def positive_probability(norm: nn.Module) -> Tensor | None:
    """Return how often channels are above 0, by gamma and the shift.

    P(gamma * x_hat + shift > 0) = Phi(shift / |gamma|) for a normal x_hat,
    and 1 or 0 where gamma is 0. The shift is the applied bias, beta + alpha
    for psBN. The probability does not consider a sum after the norm layer.

    Args:
        norm (nn.Module): BN, psBN, GN, or another layer with weight and bias.

    Returns:
        Tensor: ``(C,)``, or None for a layer without weight or bias.
    """
    gamma, shift = gamma_and_shift(norm)
    if not len(gamma):
        return None
    return torch.special.ndtr(shift / gamma.abs()).where(
        gamma != 0, (shift > 0).to(gamma)
    )


def gamma_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the scale and the applied bias of a norm layer, in float64.

    Args:
        norm (nn.Module): The norm layer.

    Returns:
        tuple[Tensor, Tensor]: ``(C,)`` each, or ``(0,)`` for a layer without
        weight or bias.
    """
    gamma, shift = getattr(norm, 'weight', None), getattr(norm, 'bias', None)
    if gamma is None or shift is None:
        gamma = shift = torch.empty(0)
    return gamma.detach().double(), torch.as_tensor(shift).detach().double()


def _input(args, kwargs) -> Tensor:
    return args[0] if args else kwargs['input']


def _from_zero(args, kwargs) -> bool:
    least = args[1] if len(args) > 1 else kwargs.get('min_val', -1.0)
    return least == 0
