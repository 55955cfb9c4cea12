"""MimicNorm's body: convolutions with centered filters and no norm layers.

Fei et al., "MimicNorm: Weight Mean and Last BN Layer Mimic the Dynamic of
Batch Normalization", arXiv:2010.09278.
"""

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.module import register_module_module_registration_hook

from mmpsbn.errors import InputError
from mmpsbn.layers.optimizer_step import StepAware

# Centering divides the standard deviation after a ReLU by about this factor,
# 1 / sqrt(1 - 1 / pi), and a scalar restores it.
CENTERING_GAIN = 1.2
# A filter is centered if its mean is at most this many times eps times its
# RMS. Rounding leaves up to about 1.
CENTERED = 4


@cache
def watch_registrations() -> None:
    """Let :mod:`~mmpsbn.layers.mimic_wiring` see how models are built.

    torch calls a hook for every module of the process that becomes part of
    another one, so the hook is added with the first MimicConv or MimicNorm.
    """
    # A conv does not know its place in a model, and a function that users call
    # on the finished model would add scalars that the optimizer and DDP do not
    # know. Needed by test_scalars_of_resnet50_are_the_published_ones and
    # test_one_setting_without_the_other_is_refused.
    from mmpsbn.layers.mimic_wiring import wire  # It imports this module.

    register_module_module_registration_hook(wire)


def filter_means(weight: Tensor) -> Tensor:
    """Return the mean of each filter.

    Args:
        weight (Tensor): Of shape ``(out, in, *kernel)``.

    Returns:
        Tensor: Of shape ``(out, 1, *1)``.
    """
    return weight.mean(tuple(range(1, weight.dim())), keepdim=True)


def center_(weight: Tensor) -> None:
    """Subtract its mean from each filter, in place and without autograd.

    Filters that are centered up to rounding keep their bits.

    Args:
        weight (Tensor): Of shape ``(out, in, *kernel)``.
    """
    with torch.no_grad():
        for _ in range(2):  # The first pass leaves the rounding of a large mean.
            means = filter_means(weight)
            rms = filter_means(weight.square()).sqrt()
            rounding = CENTERED * torch.finfo(weight.dtype).eps * rms
            weight.sub_(means.where(means.abs() > rounding, 0))


class ScaledWeight(Function):
    """The product s w, for one convolution that uses it.

    The backward pass makes no copy of w, unless it is itself differentiated.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, scale: Tensor) -> Tensor:
        return weight * scale

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad: Tensor):
        weight, scale = ctx.saved_tensors
        grad_scale = torch.dot(grad.flatten(), weight.flatten()).view(1)
        if torch.is_grad_enabled():
            return grad * scale, grad_scale
        # The convolution made this gradient only for this function.
        return grad.mul_(scale), grad_scale


class SelfInitializedConv2d(nn.Conv2d):
    """A class between Conv2d and MimicConv that hides it from MMEngine.

    MMDetection's models have ``init_cfg=dict(type='Kaiming', layer='Conv2d')``
    or similar settings by default. These initialize every module whose class
    or direct base is named Conv2d, but MimicConv initializes itself. Needed by
    test_initializers_for_conv2d_leave_the_published_start.
    """


class MimicConv(StepAware, SelfInitializedConv2d):
    r"""2D convolution with centered filters, a bias and an optional scalar.

    .. math::
        y = \mathrm{conv}(x, s \cdot w) + b, \qquad
        \mathrm{mean}(w_o) = 0

    The mean is over the (in, kh, kw) of each filter o. After a ReLU, inputs
    have a positive mean, which centered filters ignore. Only ungrouped
    convolutions are centered, as in the published code.

    The weight is centered when it is initialized, when it is loaded, and
    after each step of the torch optimizer that holds it, as published. The
    forward pass is therefore that of a plain convolution, and a state dict
    holds centered weights. Weights that are written in any other way are not
    centered before the next step. Under FSDP with flat parameters, whose
    pieces cannot be centered, the forward pass applies a centered copy, and
    so does ``torch.func.functional_call``.

    The initialization is the published one: w is He-normal and centered, b is
    0, and s is :attr:`start`. The variance of w is 2 / fan-in, with
    fan-in = kh * kw * in / groups (in / groups at least 4 if grouped).
    Initializers for ``Conv2d`` do not change the layer.

    Convolutions that end a residual branch and those of shortcuts have the
    scalar s, see :mod:`mmpsbn.layers.mimic_wiring`. It multiplies the weight,
    so no activation is stored for it, or the input if that is smaller.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int or tuple): As in Conv2d. The same holds for stride,
            padding, dilation, groups, padding_mode, device and dtype.
        bias (bool): Ignored. MMDetection's models turn off the bias before a
            norm layer, but MimicNorm has no norm layer, so it needs the bias.
        center (bool): False leaves the weight uncentered, to measure the
            effect of centering. Defaults to True.

    Shape:
        - Input: ``(N, in_channels, H, W)``
        - Output: ``(N, out_channels, H', W')`` as in Conv2d

    Raises:
        InputError: If an ungrouped convolution has a fan-in of 1, because
            centering would make its weight 0. ``load_state_dict`` raises it
            if the state dict has the weight but no bias, like that of a model
            with norm layers.

    Examples:
        >>> # In a config:
        >>> conv_cfg = dict(type='MimicConv')
        >>> norm_cfg = dict(type='MimicNorm')
    """

    stepped = 'weight'
    missed = (
        'MimicConv layers are not centered after a step: no optimizer holds '
        'their weight itself. Train them with DistributedDataParallel, FSDP '
        'or fully_shard, and without a master copy of the parameters.'
    )
    #: The number b of the residual branch that this convolution ends, if any.
    branch: int | None = None
    #: The initial value of the scalar.
    start: float = 1.0
    bias: nn.Parameter

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups: int = 1,
        bias: bool = True,
        padding_mode='zeros',
        device=None,
        dtype=None,
        *,
        center: bool = True,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        # TorchScript would read a declaration in the class body (test_torchscript).
        self.scale: nn.Parameter | None
        self.register_parameter('scale', None)
        self.centered = center and groups == 1
        if self.centered and self.weight[0].numel() == 1:
            raise InputError(
                'MimicConv got in_channels=1 and kernel_size=1, a fan-in of '
                '1: centering would make its weight 0. Give the convolution '
                'more inputs, or set center=False in its conv_cfg.'
            )
        self.init_weights()
        self.join_steps()

    def join_steps(self) -> None:
        super().join_steps()
        watch_registrations()

    @staticmethod
    def after_step(layers: list['MimicConv'], parameters: list[Tensor]) -> None:
        for layer, weight in zip(layers, parameters):
            # FSDP's flat parameters are pieces of one dimension.
            if layer.centered and weight.dim() > 1:
                weight.sub_(filter_means(weight))

    def reset_parameters(self) -> None:
        """Call init_weights, unless the constructor of Conv2d is the caller."""
        if 'scale' in self._parameters:
            self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set weight, bias and scalar to their published initial values."""
        fan_in: float = self.weight[0].numel()
        if self.groups > 1:
            fan_in *= max(4 / self.weight.shape[1], 1)
        self.weight.normal_(0, math.sqrt(2 / fan_in))
        self.bias.zero_()
        self.center_()
        if self.scale is not None:
            self.scale.fill_(self.start)

    @torch.no_grad()
    def set_scale(self, start: float) -> None:
        """Add the scalar, a parameter of shape ``(1,)``, or change its start.

        A scalar that has moved from its initial value keeps its value.

        Args:
            start (float): The initial value.
        """
        if self.scale is None:
            self.scale = nn.Parameter(self.weight.new_full((1,), start))
        elif self.scale.is_meta or self.scale == self.start:
            self.scale.fill_(start)
        self.start = start

    def center_(self) -> None:
        """Center the weight in place, unless centering is turned off."""
        if self.centered:
            center_(self.weight)

    @property
    def applied_weight(self) -> Tensor:
        """The product s w, in the shape of the weight."""
        weight = self.weight
        if self.centered and not isinstance(weight, nn.Parameter):
            weight = weight - filter_means(weight)
        return weight if self.scale is None else weight * self.scale

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if (
            self.training
            and self.scale is not None
            and isinstance(weight, nn.Parameter)
        ):
            # The smaller product costs less time and memory. A scalar in half
            # precision would be rounded.
            if input.numel() < weight.numel() and input.dtype == weight.dtype:
                return self._conv_forward(input * self.scale, weight, self.bias)
            weight = ScaledWeight.apply(weight, self.scale)
        else:
            weight = self.applied_weight
        return self._conv_forward(input, weight, self.bias)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        if f'{prefix}weight' in state_dict and f'{prefix}bias' not in state_dict:
            raise InputError(
                f'the checkpoint has {prefix}weight without a bias, so it is '
                'not a MimicNorm checkpoint; convert it with tools/convert.py '
                '--to mimicnorm.'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
        if not self.weight.is_meta:
            self.center_()

    def extra_repr(self) -> str:
        scale = '' if self.scale is None else f', scale from {self.start:.3g}'
        return f'{super().extra_repr()}, centered={self.centered}{scale}'


class MimicNorm(nn.Module):
    """The identity, in the position of a norm layer.

    The convolution before it, a :class:`MimicConv`, does all the work and
    has the bias. MimicNorm has no parameters, stores no activation and costs
    no time.

    Args:
        num_features (int): ``C``, part of the interface of norm layers.
        eps (float): Unused, part of the same interface.

    Shape:
        - Input: any
        - Output: the input itself
    """

    # MMDetection's models name the layer bn1, bn2 and so on, like a BN.
    _abbr_ = 'bn'

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        watch_registrations()
        self.num_features = num_features

    def forward(self, input: Tensor) -> Tensor:
        return input

    def extra_repr(self) -> str:
        return f'{self.num_features}'
