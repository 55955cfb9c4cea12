"""MimicNorm's last BN: one batch norm on the logits, just before the loss.

Fei et al., "MimicNorm: Weight Mean and Last BN Layer Mimic the Dynamic of
Batch Normalization", arXiv:2010.09278.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from mmpsbn.layers.sync_post_shifted_bn import in_several_processes, sync_batch_norm


class LastBN(nn.Module):
    r"""A mixin that adds a batch norm to a layer that computes logits.

    .. math::
        y = g \, \frac{W x - \mathrm{E}[W x]}
            {\sqrt{\mathrm{Var}[W x] + \epsilon}} + b

    Mean and variance are those of the batch in training, and running
    statistics in evaluation. W and b are the layer's ``weight`` and ``bias``,
    so a head's initialization sets b as usual (to the prior of focal loss,
    for example). g is the parameter ``gain``.

    The MimicNorm paper (arXiv:2010.09278) has neither g nor b, which is
    ``affine=False``. A detector needs both: a softmax over logits of variance
    1 cannot be confident, and focal loss would lose its prior.

    List the mixin before ``nn.Linear`` or ``nn.Conv2d`` in the base classes.
    The arguments of that class come first.

    Args:
        affine (bool): Whether the layer has g and b. Defaults to True.
        gain (float): The initial value of g. Defaults to 1.
        momentum (float): Weight of the newest batch in the running
            statistics. Defaults to 0.1.
        eps (float): Added to the variance. Defaults to 1e-5.
        sync (bool): Whether mean and variance are those of the batches of
            all processes. Defaults to False.
    """

    weight: Tensor
    bias: Tensor | None
    gain: Tensor | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        *args,
        affine: bool = True,
        gain: float = 1.0,
        momentum: float = 0.1,
        eps: float = 1e-5,
        sync: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(*args, **{**kwargs, 'bias': affine})
        self.momentum, self.eps, self.sync = momentum, eps, sync
        self.start = gain
        values = self.weight.new_ones(self.weight.shape[0])
        # It is not named weight, because a head's initialization sets that.
        self.register_parameter('gain', nn.Parameter(values * gain) if affine else None)
        self.register_buffer('running_mean', torch.zeros_like(values))
        self.register_buffer('running_var', values)

    def reset_parameters(self) -> None:
        super().reset_parameters()  # type: ignore[misc]  # Of Linear or Conv2d.
        if 'running_var' not in self._buffers:
            return  # The constructor of the base class calls this method.
        self.running_mean.zero_()
        self.running_var.fill_(1)
        if self.gain is not None:
            nn.init.constant_(self.gain, self.start)

    def normalize(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """Normalize parts of the logits by one mean and variance per channel.

        A batch with fewer than two values per channel (if no RoI was sampled,
        for example) is normalized by the running statistics and does not
        change them.

        Args:
            logits (list[Tensor]): The parts of W x, each of shape ``(N, C)``
                or ``(N, C, *)``.

        Returns:
            list[Tensor]: The parts of y, in the same shapes.
        """
        flat = [
            part.flatten(2) if part.dim() > 2 else part.unsqueeze(2) for part in logits
        ]
        x = torch.cat(flat, dim=2) if len(flat) > 1 else flat[0]
        parts = self._batch_norm(x).split([p.shape[2] for p in flat], dim=2)
        return [part.view(old.shape) for part, old in zip(parts, logits)]

    def _batch_norm(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        sync = self.training and self.sync and in_several_processes()
        count = x.shape[0] * x.shape[2]
        if sync:
            # All processes have to choose the same statistics.
            total = torch.tensor(count, device=x.device)
            dist.all_reduce(total)
            count = int(total)
        batch = self.training and count > 1
        gain, bias = self.gain, self.bias
        if sync and batch:
            if gain is None or bias is None:
                gain, bias = torch.ones_like(var), torch.zeros_like(mean)
            return sync_batch_norm(x, gain, bias, mean, var, self.eps, self.momentum)
        return F.batch_norm(x, mean, var, gain, bias, batch, self.momentum, self.eps)


# torch declares Linear.bias without None.
class LastBNLinear(LastBN, nn.Linear):  # type: ignore[misc]
    """Linear layer with a last BN, for the class logits of RoI heads.

    See :class:`LastBN` for the formula and for the arguments that follow
    those of :class:`torch.nn.Linear`.

    Shape:
        - Input: ``(N, in_features)``
        - Output: ``(N, out_features)``

    Examples:
        >>> # In a config:
        >>> bbox_head = dict(cls_predictor_cfg=dict(type='LastBNLinear'))
    """

    def forward(self, input: Tensor) -> Tensor:
        return self.normalize([F.linear(input, self.weight)])[0]


class LastBNConv2d(LastBN, nn.Conv2d):
    """2D convolution whose outputs share one last BN, for dense heads.

    A call returns W x only, because a dense head calls the layer once for
    each level of a feature pyramid. ``normalize`` then takes the outputs of
    all levels. Statistics of each level would give one layer several
    distributions ("Rethinking 'Batch' in BatchNorm", arXiv:2105.07576).

    See :class:`LastBN` for the formula and for the arguments that follow
    those of :class:`torch.nn.Conv2d`.

    Shape:
        - Input: ``(N, in_channels, H, W)``
        - Output: ``(N, out_channels, H', W')`` as in Conv2d
    """

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight, None)
