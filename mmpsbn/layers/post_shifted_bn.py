"""psBN, post-shifted batch normalization.

Zhou, Wang, Luo, Feng, Li, Zhang, "How Does BN Increase Collapsed Neural
Network Filters?", arXiv:2001.11216.
"""

import math
from collections.abc import Callable
from functools import cache
from numbers import Real

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmpsbn.layers.optimizer_step import StepAware


@cache
def _constant(alpha: float, dtype: torch.dtype) -> Tensor:
    return torch.tensor(alpha, dtype=dtype, device='cpu')


def _alphas(layers: list['PostShift'], parameters: list[Tensor]) -> list:
    """Return the alphas of layers, for a foreach operation on tensors."""
    if parameters[0].is_cpu and type(parameters[0]) is nn.Parameter:
        # On a CPU, tensors take a third of the time that numbers take.
        return [
            _constant(layer.alpha, parameter.dtype)
            for layer, parameter in zip(layers, parameters)
        ]
    return [layer.alpha for layer in layers]


class PostShift(StepAware, _BatchNorm):
    r"""A mixin that turns a batch norm layer into its post-shifted form.

    .. math::
        y = \gamma \hat x + \beta + \alpha, \qquad
        \hat x = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}}

    alpha is a constant. The parameter ``bias`` holds the applied bias,
    b = beta + alpha. The forward pass, the state dict and all code that reads
    or writes a norm layer therefore work as for BN. The optimizer steps on
    beta: the ``step`` of every torch optimizer that holds ``bias`` subtracts
    alpha before its arithmetic and adds it afterwards. Weight decay therefore
    pulls beta to 0 and b to alpha, and a channel without gradient reopens.

    The layer starts at gamma = 1 and b = alpha. An initializer may write BN's
    initial value, b = 0, into a layer that has neither been loaded nor
    trained. The layer then sets b = alpha as soon as
    :meth:`torch.nn.Module.apply` returns, or at the next call of ``train()``
    or ``eval()``.

    The optimizer has to hold the parameter itself. This is so under DDP,
    ``ZeroRedundancyOptimizer``, ``fully_shard``, and FSDP with
    ``use_orig_params=True``. Under FSDP with flat parameters, and with an
    optimizer that trains copies, the layer is a plain BN, and a warning
    reports it. An optimizer that averages parameters in its state (ASGD,
    schedule-free) averages beta.
    """

    stepped = 'bias'
    missed = (
        'psBN layers are trained as plain BN: no optimizer holds their bias '
        'itself, so weight decay pulls it to 0 instead of alpha. Train them '
        'with DistributedDataParallel, fully_shard, or FSDP with '
        'use_orig_params=True, and without a master copy of the parameters.'
    )
    # BN's constructor sets the bias before the layer knows its alpha.
    alpha: float = 0.0
    _loaded: bool = False

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device=None,
        dtype=None,
        *,
        bias: bool = True,
        alpha: float = 0.1,
    ) -> None:
        if not (affine and bias):
            raise ValueError(
                f'{type(self).__name__} got affine={affine}, bias={bias}, but '
                'psBN needs its learned bias, which weight decay pulls to '
                'alpha; leave both True, or use BN.'
            )
        self.check_alpha(alpha)
        super().__init__(
            num_features,
            eps,
            momentum,
            track_running_stats=track_running_stats,
            device=device,
            dtype=dtype,
        )
        self.alpha = float(alpha)
        self.reset_parameters()
        self.join_steps()

    @classmethod
    def check_alpha(cls, alpha: float) -> None:
        """Raise a ValueError if alpha is not a finite number >= 0."""
        if not (
            isinstance(alpha, Real)
            and not isinstance(alpha, bool)
            and math.isfinite(alpha)
            and alpha >= 0
        ):
            raise ValueError(
                f'{cls.__name__} got alpha={alpha!r}, but '
                'alpha must be a finite number >= 0.'
            )

    @staticmethod
    def before_step(layers: list['PostShift'], parameters: list[Tensor]) -> None:
        torch._foreach_sub_(parameters, _alphas(layers, parameters))

    @staticmethod
    def after_step(layers: list['PostShift'], parameters: list[Tensor]) -> None:
        torch._foreach_add_(parameters, _alphas(layers, parameters))

    def is_missed(self) -> bool:
        return 'bias' not in self._parameters or super().is_missed()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.bias, self.alpha)

    def apply(self, fn: Callable[[nn.Module], None]) -> 'PostShift':
        super().apply(fn)
        self._start_at_alpha()
        return self

    def train(self, mode: bool = True) -> 'PostShift':
        self._start_at_alpha()
        return super().train(mode)

    def _start_at_alpha(self) -> None:
        """Replace BN's initial bias by that of psBN."""
        if self._loaded or self._parameters.get('bias') is None:
            return
        bias = self.bias.detach()
        if hasattr(bias, 'to_local'):  # fully_shard gives a part to each process.
            bias = bias.to_local()
        # Fake and meta tensors have no values. Tensors of inference mode stay
        # unchanged.
        if type(bias) is Tensor and not (
            bias.is_meta
            or bias.is_inference()
            or bias.any()
            or self.num_batches_tracked
        ):
            nn.init.constant_(bias, self.alpha)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # MMEngine loads the keys that exist and fit.
        bias = state_dict.get(f'{prefix}bias')
        self._loaded |= getattr(bias, 'shape', None) == self.bias.shape
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, alpha={self.alpha}'


# MMEngine's initializers find layers by the names of their direct bases, so
# _BatchNorm is one of them in each class below.


class PSBatchNorm1d(PostShift, nn.BatchNorm1d, _BatchNorm):
    """psBN over a 2D or 3D input, see :class:`PSBatchNorm2d`.

    Shape:
        - Input: ``(N, C)`` or ``(N, C, L)``
        - Output: the shape of the input
    """


class PSBatchNorm2d(PostShift, nn.BatchNorm2d, _BatchNorm):
    r"""Post-shifted batch normalization (psBN) over a 4D input.

    .. math::
        y = \gamma \frac{x - \mathrm{E}[x]}
            {\sqrt{\mathrm{Var}[x] + \epsilon}} + \beta + \alpha

    Mean, variance (biased in the formula, unbiased in the running estimate)
    and running statistics are those of :class:`torch.nn.BatchNorm2d`. alpha is
    a constant; ``bias`` holds beta + alpha, and optimizers step on beta, see
    :class:`PostShift`. Source: arXiv:2001.11216.

    Args:
        num_features (int): ``C``.
        eps (float): Added to the variance. Defaults to 1e-5.
        momentum (float, optional): The weight of the newest batch in the
            running statistics; None for a cumulative average. Defaults to
            0.1.
        affine (bool): Must be True.
        track_running_stats (bool): As in BN. Defaults to True.
        bias (bool): Must be True.
        alpha (float): The post-shift, a finite number >= 0. With 0, the layer
            is BN. Defaults to 0.1.

    Shape:
        - Input: ``(N, C, H, W)``
        - Output: the shape of the input

    Raises:
        ValueError: If alpha is not a finite number >= 0, if affine or bias
            is False, or if the input has another rank.

    Examples:
        >>> layer = PSBatchNorm2d(64)
        >>> layer(torch.randn(2, 64, 7, 7)).mean().item()  # Close to alpha.
        >>> # In a config:
        >>> norm_cfg = dict(type='psBN', alpha=0.1, requires_grad=True)
    """


class PSBatchNorm3d(PostShift, nn.BatchNorm3d, _BatchNorm):
    """psBN over a 5D input, see :class:`PSBatchNorm2d`.

    Shape:
        - Input: ``(N, C, D, H, W)``
        - Output: the shape of the input
    """
