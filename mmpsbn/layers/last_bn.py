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


class LastBN:
    r"""What time_alternately a layer of logits into one with a batch norm of its own.

    .. math::
        y = g \, \frac{W x - \mathrm{E}[W x]}
            {\sqrt{\mathrm{Var}[W x] + \epsilon}} + b

    Mean and variance are those of a batch in training, and running
    statistics in evaluation. W and b are the layer's own ``weight`` and
    ``bias``, so that b starts where a head's initialization puts it (at the
    prior of focal loss, say); g is the parameter ``gain``.

    [M] has neither g nor b (``affine=False``). A detector needs both: a
    softmax over logits of variance 1 cannot be confident, and focal loss
    would lose its prior.

    A mixin for ``nn.Linear`` and ``nn.Conv2d``; it stands before them in the
    list of bases, and their arguments come first.

    Args:
        affine (bool): Whether there are g and b. Defaults to True.
        gain (float): Where g starts. Defaults to 1.
        momentum (float): Weight of the newest batch in the running
            statistics. Defaults to 0.1.
        eps (float): Added to the variance. Defaults to 1e-5.
        sync (bool): Whether the batch is that of all processes. Defaults to
            False.
    """

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
        # Not named weight: by that name a head's initialization sets W.
        self.register_parameter('gain', nn.Parameter(values * gain) if affine else None)
        self.register_buffer('running_mean', torch.zeros_like(values))
        self.register_buffer('running_var', values)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if 'running_var' not in self._buffers:
            return  # The base class calls this before there are any.
        self.running_mean.zero_()
        self.running_var.fill_(1)
        if self.gain is not None:
            nn.init.constant_(self.gain, self.start)

    def normalize(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """From W x to y, by one set of statistics for all of its parts.

        A batch of less than two values per channel (no RoI was sampled, say)
        is normalized by the running statistics, and leaves them alone.

        Args:
            logits (list[Tensor]): Of shape ``(N, C)`` or ``(N, C, *)``.

        Returns:
            list[Tensor]: In the same shapes.
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
            # Processes with few values cannot tell what the others have.
            total = torch.tensor(count, device=x.device)
            dist.all_reduce(total)
            count = int(total)
        batch = self.training and count > 1
        if sync and batch:
            gain, bias = self.gain, self.bias
            if gain is None:
                gain, bias = torch.ones_like(var), torch.zeros_like(mean)
            return sync_batch_norm(x, gain, bias, mean, var, self.eps, self.momentum)
        return F.batch_norm(
            x, mean, var, self.gain, self.bias, batch, self.momentum, self.eps
        )


class LastBNLinear(LastBN, nn.Linear):
    """Linear layer with a last BN, for the class logits of RoI heads.

    See :class:`LastBN` for the formula and the arguments after
    ``in_features`` and ``out_features``.

    Shape:
        - Input: ``(N, in_features)``
        - Output: ``(N, out_features)``

    Examples:
        >>> # in a config
        >>> bbox_head = dict(cls_predictor_cfg=dict(type='LastBNLinear'))
    """

    def forward(self, input: Tensor) -> Tensor:
        return self.normalize([F.linear(input, self.weight)])[0]


class LastBNConv2d(LastBN, nn.Conv2d):
    """2D convolution whose results share one last BN.

    Calling it gives W x alone, because a dense head calls it once for each
    level of a feature pyramid; ``normalize`` then takes the results of all
    levels. Statistics level by level would make one layer see as many
    distributions ("Rethinking 'Batch' in BatchNorm", arXiv:2105.07576).

    See :class:`LastBN` for the formula, and the arguments after Conv2d's.
    """

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight, None)
