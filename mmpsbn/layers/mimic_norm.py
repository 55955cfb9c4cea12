"""MimicNorm's body: convs with centred filters in the place of norm layers.

Fei et al., "MimicNorm: Weight Mean and Last BN Layer Mimic the Dynamic of
Batch Normalization", arXiv:2010.09278.
"""

import math
from typing import Optional

import torch
from torch import Tensor, nn

from mmpsbn.errors import InputError
from mmpsbn.registry import MODELS, NORM_LAYERS

# What centring takes from the standard deviation after a ReLU, and a scalar
# gives back: about 1 / sqrt(1 - 1 / pi).
CENTRING_GAIN = 1.2


def filter_means(weight: Tensor) -> Tensor:
    """Mean of each filter, and 0 where rounding is all that is left of it.

    So that centring a centred weight changes no bit of it.

    Args:
        weight (Tensor): Of shape ``(out, in, *kernel)``.

    Returns:
        Tensor: Of shape ``(out, 1, *1)``.
    """
    dims = tuple(range(1, weight.dim()))
    mean = weight.mean(dims, keepdim=True)
    norm = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
    rounding = norm * (
        torch.finfo(weight.dtype).eps / math.sqrt(weight[0].numel()))
    return mean.where(mean.abs() > rounding, 0)


class SelfInitializedConv2d(nn.Conv2d):
    """Between Conv2d and MimicConv, for MMEngine's initializers.

    ``init_cfg=dict(type='Kaiming', layer='Conv2d')`` and its like, which
    MMDetection's models have by default, set every module whose class or
    direct base is named Conv2d. A MimicConv has a start of its own.
    """


@MODELS.register_module()
class MimicConv(SelfInitializedConv2d):
    r"""2D convolution with centred filters, a bias and, where asked, a scalar.

    .. math::
        y = \mathrm{conv}(x, s \cdot P w) + b, \qquad
        (P w)_o = w_o - \mathrm{mean}(w_o)

    over the (in, kh, kw) of each filter o. After a ReLU, inputs have a
    positive mean, which centred filters ignore. Only ungrouped convs are
    centred, as in the published code; elsewhere P w = w.

    In training the weight itself is centred, in place and without autograd,
    at the beginning of a forward: no copy of it is kept, and its trajectory
    is that of centring after each step of the optimizer, as published. In
    evaluation, where the weight is frozen, and under FSDP a centred copy is
    applied and the weight is left alone. A state dict holds centred weights.

    It starts as published: w He-normal, of variance 2 / fan-in with fan-in =
    kh * kw * in / groups (in / groups at least 4 if grouped), and centred;
    b = 0; s = :attr:`start`. Initializers for ``Conv2d`` do not reach it.

    The scalar s stands at the end of a residual branch and on a shortcut,
    see :mod:`mmpsbn.layers.mimic_wiring`; it multiplies the weight, so
    that no activation is kept for it.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int or tuple): As in Conv2d, and so are stride, padding,
            dilation, groups, padding_mode, device and dtype.
        bias (bool): Ignored: a conv without a norm layer needs its bias, and
            MMDetection's models turn it off before one.
        centre (bool): False leaves the weight as it is, to measure what
            centring does. Defaults to True.

    Shape:
        - Input: ``(N, in_channels, H, W)``
        - Output: ``(N, out_channels, H', W')`` as in Conv2d

    Raises:
        InputError: If an ungrouped conv has a fan-in of 1: centring would
            make its weight 0. On loading, if the state dict has the weight
            but no bias, as that of a model with norm layers.

    Examples:
        >>> # in a config
        >>> conv_cfg = dict(type='MimicConv')
        >>> norm_cfg = dict(type='MimicNorm')
    """

    #: b of the residual branch that this conv ends; elsewhere None.
    branch: Optional[int] = None
    #: Where the scalar starts.
    start: float = 1.0
    # By fully_shard.
    _sharded: bool = False

    def __init__(self,
                 in_channels: int,
                 out_channels: int,
                 kernel_size,
                 stride=1,
                 padding=0,
                 dilation=1,
                 groups: int = 1,
                 bias: bool = True,
                 padding_mode: str = 'zeros',
                 device=None,
                 dtype=None,
                 *,
                 centre: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride,
                         padding, dilation, groups, True, padding_mode,
                         device, dtype)
        self.register_parameter('scale', None)
        self.centred = centre and groups == 1
        if self.centred and self.weight[0].numel() == 1:
            raise InputError(
                'MimicConv got in_channels=1 and kernel_size=1, a fan-in of '
                '1: centring would make its weight 0. Give the conv more '
                'inputs, or set centre=False in its conv_cfg.')
        self.init_weights()

    def __setattr__(self, name: str, value) -> None:
        if name == 'weight' and hasattr(value, 'device_mesh'):
            self._sharded = True
        super().__setattr__(name, value)

    def reset_parameters(self) -> None:
        """Left to init_weights; the constructor of Conv2d calls it early."""

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set weight, bias and scalar to their published start."""
        fan_in = self.weight[0].numel()
        if self.groups > 1:
            fan_in *= max(4 / self.weight.shape[1], 1)
        self.weight.normal_(0, math.sqrt(2 / fan_in))
        self.bias.zero_()
        if self.centred:
            self.weight.sub_(filter_means(self.weight))
        if self.scale is not None:
            self.scale.fill_(self.start)

    @torch.no_grad()
    def set_scale(self, start: float) -> None:
        """Give the conv a learnable scalar, of shape ``(1,)``, or a new start.

        A scalar that has moved from its start keeps its value.
        """
        if self.scale is None:
            self.scale = nn.Parameter(self.weight.new_full((1, ), start))
        elif self.scale.is_meta or self.scale == self.start:
            self.scale.fill_(start)
        self.start = start

    @property
    def applied_weight(self) -> Tensor:
        """s P w, of the weight's shape."""
        weight = self.weight
        if self.centred:
            weight = weight - filter_means(weight)
        return weight if self.scale is None else weight * self.scale

    def centre_(self) -> None:
        """Centre the weight in place.

        Raises:
            InputError: If the weight is frozen.
        """
        if not self.centred:
            return
        if not self.weight.requires_grad:
            raise InputError('the weight of a frozen MimicConv cannot be '
                             'centred; set requires_grad=True first.')
        # `data`: autograd may hold the weight for another call of this
        # forward, and then it is centred already, so that nothing changes.
        self.weight.data.sub_(filter_means(self.weight.data))

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        # FSDP fills its weights anew for the backward; those of its first
        # version are no parameters but views.
        in_place = isinstance(weight, nn.Parameter) and not self._sharded
        if not (self.training and weight.requires_grad and in_place):
            return self._conv_forward(input, self.applied_weight, self.bias)
        self.centre_()
        if self.scale is not None:
            weight = weight * self.scale
        return self._conv_forward(input, weight, self.bias)

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        # The optimizer may have made the last change to the weight. Under
        # FSDP a process that saves nothing has at most a flat piece of it.
        weight = self._parameters.get('weight')
        if weight is not None and weight.requires_grad and weight.dim() > 1:
            self.centre_()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        if f'{prefix}weight' in state_dict and \
                f'{prefix}bias' not in state_dict:
            raise InputError(
                f'the checkpoint has {prefix}weight without a bias, so that '
                'it is not of MimicNorm; make it one by tools/convert.py '
                '--to mimicnorm.')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        scale = '' if self.scale is None else f', scale from {self.start:.3g}'
        return f'{super().extra_repr()}, centred={self.centred}{scale}'


@NORM_LAYERS.register_module()
class MimicNorm(nn.Module):
    """What stands where a norm layer would: the identity.

    The conv before it, a :class:`MimicConv`, does all the work, and has its
    bias. MimicNorm has no parameters, keeps no activation, and costs nothing.

    Args:
        num_features (int): ``C``, for the sake of norm layers' interface.
        eps (float): As num_features.

    Shape:
        - Input: any
        - Output: the input itself
    """

    # By these names MMDetection's models find the layer where BN would be.
    _abbr_ = 'bn'

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, input: Tensor) -> Tensor:
        return input

    def extra_repr(self) -> str:
        return f'{self.num_features}'
