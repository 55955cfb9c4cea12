"""Which channels have collapsed: seen in their outputs, or in parameters.

Filter collapse is defined in Zhou et al., "How Does BN Increase Collapsed
Neural Network Filters?", arXiv:2001.11216: gamma goes to 0 while the shift is
not above 0, so that the ReLU after the norm layer gives 0 for every input and
no gradient comes back.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from mmpsbn.layers import NORM_TYPES

# A channel that is positive less often is called dead by its parameters.
LEAST_PROBABILITY = 1e-4
RELUS = {'relu', 'relu_', 'relu6'}
CLIPS = {'hardtanh', 'hardtanh_'}  # ReLU6 is one, from 0 to 6.
SUMS = {'add', 'add_', '__add__', '__iadd__', '__radd__'}


class Origin(NamedTuple):
    """Where a tensor comes from."""

    layer: str
    """The norm layer whose output it is, or the first of its summands."""
    summed: bool
    """Whether anything has been added since."""


class Outputs(NamedTuple):
    """What was seen of a norm layer's channels behind their ReLU."""

    dead: Tensor
    """Bool, ``(C,)``: 0 at every position of every image."""
    after_sum: bool
    """Whether a residual sum stands between the norm layer and the ReLU."""


def norm_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of BN and its like, psBN, GN and MimicNorm."""
    for name, module in model.named_modules():
        if isinstance(module, NORM_TYPES) and channels_of(module):
            yield name, module


def channels_of(norm: nn.Module) -> int:
    """Of a norm layer; 0 for one that has no channels, as LayerNorm."""
    return getattr(norm, 'num_features', getattr(norm, 'num_channels', 0))


def stage_of(name: str) -> str:
    """The stage of a layer: at most two parts of its name."""
    return '.'.join(name.split('.')[:2])


class ChannelWatch(TorchFunctionMode):
    """Watches the forwards of a model for channels that a ReLU never opens.

    A channel is *dead* if the output of the ReLU that follows its norm layer
    is 0 at every position of every image, over all forwards and all calls of
    the layer within ``with watch: ...``. The data decide. If a sum stands
    between norm layers and the ReLU, the sum is judged, where a channel may
    live by another summand. It counts once, for the norm layer that is its
    first summand; a norm layer whose channels the sum broadcasts is not
    considered. Norm layers that no ReLU or ReLU6 follows, directly or after
    sums, are not judged.

    It looks at the functions that are called on tensors, so that it finds
    the ReLU wherever it is called, and costs one comparison of an activation
    for each ReLU.

    Args:
        model (nn.Module): With BN, psBN, GN or MimicNorm, or several.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = dict(norm_layers(model))
        self._alive: dict[str, Tensor] = {}
        self._after_sum: dict[str, bool] = {}
        self._origins = WeakIdKeyDictionary()
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> 'ChannelWatch':
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_hook(self._listener(name)))
        return super().__enter__()

    def __exit__(self, *error) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._origins = WeakIdKeyDictionary()
        super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, '__name__', '')
        origin = None
        if name in RELUS or (name in CLIPS and _from_zero(args, kwargs)):
            origin = self._origins.pop(_first(args, kwargs), None)
        result = func(*args, **kwargs)
        if origin is not None:
            self._note(origin, result)
        elif name in SUMS:
            self._add([*args, *kwargs.values()], result)
        return result

    @property
    def outputs(self) -> dict[str, Outputs]:
        """Of every norm layer that a ReLU was seen to follow."""
        return {
            name: Outputs(~alive, self._after_sum[name])
            for name, alive in self._alive.items()
        }

    def _listener(self, name: str):

        def listen(module, args, output):
            self._origins[output] = Origin(name, False)

        return listen

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
    def _note(self, origin: Origin, output: Tensor) -> None:
        if not output.numel():
            return
        alive = (output.detach() > 0).transpose(0, 1).flatten(1).any(1)
        self._alive[origin.layer] = self._alive.get(origin.layer, alive) | alive
        self._after_sum[origin.layer] = origin.summed


def positive_probability(norm: nn.Module) -> Tensor | None:
    """How often a channel is above 0, by gamma and the shift alone.

    P(gamma * x_hat + shift > 0) = Phi(shift / |gamma|) for a normal x_hat,
    and 1 or 0 where gamma is 0; the shift is the bias that is applied, of
    psBN beta + alpha. It says nothing of a sum after the norm layer.

    Args:
        norm (nn.Module): BN, psBN or GN, or another with weight and bias.

    Returns:
        Tensor: ``(C,)``, or None for a layer without these.
    """
    gamma, shift = gamma_and_shift(norm)
    if gamma is None:
        return None
    return torch.special.ndtr(shift / gamma.abs()).where(
        gamma != 0, (shift > 0).to(gamma)
    )


def gamma_and_shift(norm: nn.Module) -> tuple[Tensor | None, ...]:
    """Scale and applied bias in float64, None for a layer without them."""
    gamma = getattr(norm, 'weight', None)
    shift = getattr(norm, 'bias', None)
    if gamma is None or shift is None:
        return None, None
    return (gamma.detach().double(), torch.as_tensor(shift).detach().double())


def _first(args, kwargs):
    return args[0] if args else kwargs.get('input')


def _from_zero(args, kwargs) -> bool:
    least = args[1] if len(args) > 1 else kwargs.get('min_val', -1.0)
    return least == 0


LEAST_GAMMA = 1e-3  # A smaller gamma is called vanished.
