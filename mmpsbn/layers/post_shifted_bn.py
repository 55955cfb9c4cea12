"""psBN, post-shifted batch normalization.

Zhou, Wang, Luo, Feng, Li, Zhang, "How Does BN Increase Collapsed Neural
Network Filters?", arXiv:2001.11216.
"""

import math
from numbers import Real
from typing import Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmpsbn.registry import NORM_LAYERS
from .applied_bias import AppliedBias

# Under this name beta itself travels in the metadata of a state dict.
BETA = 'psbn_beta'
# FSDP deletes a parameter and sets its pieces, and fully_shard sets a DTensor,
# by the name under which psBN shows beta + alpha.
NOT_SHARDED = (
    'the bias of {} was deleted or sharded, as FSDP does it, but psBN keeps '
    'its parameter whole; train it with DistributedDataParallel, or shard a '
    'model of MimicNorm, GN or BN.')


class PostShift:
    r"""What turns a batch norm layer into its post-shifted form.

    .. math::
        y = \gamma \hat x + \beta + \alpha, \qquad
        \hat x = \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}}

    A mixin for subclasses of ``torch.nn.modules.batchnorm._BatchNorm``; it
    stands before them in the list of bases. The learned parameter, which
    optimizers and ``named_parameters()`` see under the name ``bias``, is
    beta. The attribute :attr:`bias` and the entry ``bias`` of the state dict
    are the bias that is applied, beta + alpha, so that whoever reads them
    (conv-BN fusion, a stock BN that loads the checkpoint) computes the same
    function.

    alpha is added to the ``C`` values of the bias, not to the activation:
    no pass over the activation, and no memory, beyond those of BN.

    Weight decay on beta is what brings a collapsed channel back: it pulls
    the pre-activation of a channel without gradient to alpha > 0.
    """

    # BN's constructor assigns its bias before alpha is known.
    alpha: float = 0.0

    def __init__(self,
                 num_features: int,
                 eps: float = 1e-5,
                 momentum: Optional[float] = 0.1,
                 affine: bool = True,
                 track_running_stats: bool = True,
                 device=None,
                 dtype=None,
                 *,
                 bias: bool = True,
                 alpha: float = 0.1) -> None:
        if not (affine and bias):
            raise ValueError(
                f'{type(self).__name__} got affine={affine}, bias={bias}, but '
                'psBN needs its learned bias, which weight decay pulls to '
                'zero; leave both True, or use BN.')
        if not (isinstance(alpha, Real) and not isinstance(alpha, bool)
                and math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f'{type(self).__name__} got alpha={alpha!r}, but '
                             'alpha must be a finite number >= 0.')
        super().__init__(
            num_features,
            eps,
            momentum,
            track_running_stats=track_running_stats,
            device=device,
            dtype=dtype)
        self.alpha = float(alpha)

    @property
    def beta(self) -> nn.Parameter:
        """The learned parameter, of shape ``(C,)``."""
        return self._parameters['bias']

    @property
    def bias(self) -> Optional[Tensor]:
        """The bias that is applied, beta + alpha, of shape ``(C,)``.

        It writes through to beta when it is changed in place, see
        :class:`~mmpsbn.layers.applied_bias.AppliedBias`.
        """
        beta = self._parameters.get('bias')
        return None if beta is None else AppliedBias.of(beta, self.alpha)

    def __setattr__(self, name: str, value) -> None:
        if name == 'alpha':
            self._float_alpha = torch.tensor(
                value, dtype=torch.float, device='cpu')
        if name == 'bias' and hasattr(value, 'device_mesh'):
            raise TypeError(NOT_SHARDED.format(type(self).__name__))
        if name == 'bias' and isinstance(value, nn.Parameter):
            # What is assigned is what is read back: the applied bias.
            self._parameters[name] = nn.Parameter(
                value.detach() - self.alpha, value.requires_grad)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name == 'bias':
            raise TypeError(NOT_SHARDED.format(type(self).__name__))
        super().__delattr__(name)

    def forward(self, input: Tensor) -> Tensor:
        # What BN's forward does. On small activations every look-up counts:
        # the tensors come from the dicts, past nn.Module's attributes; on the
        # CPU alpha is a tensor of beta's type, because a number is converted
        # for each forward; and evaluation leaves out the function whose part
        # is to check the size of a training batch, and eps.
        self._check_input_dim(input)
        parameters, buffers = self._parameters, self._buffers
        beta, alpha = parameters['bias'], self._float_alpha
        if beta.dtype != alpha.dtype or not beta.is_cpu:
            alpha = self.alpha
        mean, var = buffers['running_mean'], buffers['running_var']
        if self.training or mean is None:
            mean, var, momentum = self._updated_statistics()
            return F.batch_norm(input, mean, var, parameters['weight'],
                                beta + alpha, True, momentum, self.eps)
        if self.eps < 0:
            raise ValueError(
                f'batch_norm eps must be non-negative, but got {self.eps}')
        return torch.batch_norm(input, parameters['weight'], beta + alpha,
                                mean, var, False, 0.0, self.eps,
                                torch.backends.cudnn.enabled)

    def _updated_statistics(
            self) -> Tuple[Optional[Tensor], Optional[Tensor], float]:
        """Running mean and variance, and their momentum for this batch.

        The batch is counted. Without running statistics: None, None, 0.
        """
        if not self.track_running_stats:
            return None, None, 0.0
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1 / float(self.num_batches_tracked)
        return self.running_mean, self.running_var, momentum

    def _save_to_state_dict(self, destination, prefix, keep_vars) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        key = prefix + 'bias'
        destination[key] = self.bias if keep_vars else self.bias.detach()
        # beta + alpha is rounded; with beta itself, a resumed run equals an
        # uninterrupted one to the last bit.
        metadata = getattr(destination, '_metadata', {})
        metadata.get(prefix[:-1], {})[BETA] = self.beta.detach()

    def _load_from_state_dict(self, state_dict, prefix, local_metadata,
                              *args) -> None:
        key = prefix + 'bias'
        bias = state_dict.get(key)
        # Loading by assignment goes through __setattr__, unless torch swaps
        # tensors instead.
        assigned = local_metadata.get('assign_to_params_buffers', False) and \
            not torch.__future__.get_swap_module_params_on_conversion()
        if isinstance(bias, Tensor) and not assigned:
            state_dict = state_dict.copy()
            state_dict[key] = self._beta_of(bias, local_metadata.get(BETA))
        super()._load_from_state_dict(state_dict, prefix, local_metadata,
                                      *args)

    def _beta_of(self, bias: Tensor, saved: Optional[Tensor]) -> Tensor:
        """beta for a bias of the state dict, exactly where it was saved."""
        if isinstance(saved, Tensor) and saved.dtype == bias.dtype:
            saved = saved.to(bias.device)
            if torch.equal(saved + self.alpha, bias):
                return saved
        return bias.to(self.beta.dtype) - self.alpha

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, alpha={self.alpha}'


@NORM_LAYERS.register_module(name='psBN1d')
class PSBatchNorm1d(PostShift, nn.BatchNorm1d):
    """psBN over a 2D or 3D input, see :class:`PSBatchNorm2d`.

    Shape:
        - Input: ``(N, C)`` or ``(N, C, L)``
        - Output: as the input
    """


@NORM_LAYERS.register_module(name=['psBN', 'psBN2d'])
class PSBatchNorm2d(PostShift, nn.BatchNorm2d):
    r"""Post-shifted batch normalization (psBN) over a 4D input.

    .. math::
        y = \gamma \frac{x - \mathrm{E}[x]}
            {\sqrt{\mathrm{Var}[x] + \epsilon}} + \beta + \alpha

    Statistics, running statistics, initial gamma = 1 and beta = 0 are those
    of :class:`torch.nn.BatchNorm2d`; alpha is a constant. See
    :class:`PostShift` for what is learned, read and saved. Source:
    arXiv:2001.11216.

    Args:
        num_features (int): ``C``.
        eps (float): Added to the variance. Defaults to 1e-5.
        momentum (float, optional): Weight of the newest batch in the running
            statistics; None for a cumulative average. Defaults to 0.1.
        affine (bool): Has to be True.
        track_running_stats (bool): As in BN. Defaults to True.
        bias (bool): Has to be True.
        alpha (float): The post-shift, a finite number >= 0; with 0 the layer
            is BN. Defaults to 0.1.

    Shape:
        - Input: ``(N, C, H, W)``
        - Output: as the input

    Raises:
        ValueError: If alpha is not a finite number >= 0, if affine or bias
            is False, or if the input has another rank.

    Examples:
        >>> layer = PSBatchNorm2d(64)
        >>> layer(torch.randn(2, 64, 7, 7)).mean().item()  # about alpha
        >>> # in a config
        >>> norm_cfg = dict(type='psBN', alpha=0.1, requires_grad=True)
    """


@NORM_LAYERS.register_module(name='psBN3d')
class PSBatchNorm3d(PostShift, nn.BatchNorm3d):
    """psBN over a 5D input, see :class:`PSBatchNorm2d`.

    Shape:
        - Input: ``(N, C, D, H, W)``
        - Output: as the input
    """
