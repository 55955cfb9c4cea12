"""psSyncBN: psBN over the batches of all processes of a group."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm as cuda_sync_batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from mmpsbn.layers.post_shifted_bn import PostShift


class SyncBatchNormFunction(Function):
    """Batch norm over a process group, by collectives that gloo supports.

    ``torch.nn.SyncBatchNorm`` has kernels only for accelerators. Here, each
    process shares its count, mean and sum of squared deviations. All processes
    combine them by Chan's formula, which is exact even if the counts differ
    or one of them is zero.
    """

    @staticmethod
    def forward(
        ctx, input, weight, bias, running_mean, running_var, eps, momentum, group
    ) -> Tensor:
        channels, dims = input.shape[1], _all_but_channels(input)
        x = input.to(weight.dtype)
        count = input.numel() // channels
        mean = x.sum(dims) / max(count, 1)
        deviation = (x - _per_channel(mean, x)).square().sum(dims)
        stats = torch.cat([mean, deviation, mean.new_tensor([count])])
        gathered = [torch.empty_like(stats) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, stats, group)
        means, deviations, counts = torch.stack(gathered).split(
            [channels, channels, 1], dim=1
        )
        total = counts.sum()
        if total == 1:
            raise ValueError(
                'a synchronized batch norm got 1 value per channel in the '
                f'batch of all processes (input of shape {tuple(input.shape)} '
                'in this one), but training needs more. Use a larger batch or '
                'larger images.'
            )
        total = total.clamp(min=1)
        mean = (means * counts).sum(0) / total
        deviation = (deviations + counts * (means - mean).square()).sum(0)
        var = deviation / total
        if running_mean is not None and counts.any():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(deviation / (total - 1), momentum)
        ctx.save_for_backward(input, weight, mean, (var + eps).rsqrt(), total)
        ctx.group = group
        return F.batch_norm(input, mean, var, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        input, weight, mean, invstd, total = ctx.saved_tensors
        dims = _all_but_channels(input)
        grad = grad_output.to(weight.dtype)
        x_hat = input.to(weight.dtype) - _per_channel(mean, input)
        x_hat *= _per_channel(invstd, input)
        grad_weight, grad_bias = (grad * x_hat).sum(dims), grad.sum(dims)
        sums = torch.stack([grad_weight, grad_bias])
        dist.all_reduce(sums, group=ctx.group)
        grad_x_hat, grad_mean = sums / total
        grad_input = (
            grad
            - _per_channel(grad_mean, input)
            - x_hat * _per_channel(grad_x_hat, input)
        ) * _per_channel(weight * invstd, input)
        no_gradients = (None,) * 5
        return grad_input.to(input.dtype), grad_weight, grad_bias, *no_gradients


def in_several_processes(group: dist.ProcessGroup | None = None) -> bool:
    """Return whether a process group has more than one process.

    Args:
        group (ProcessGroup, optional): Defaults to all processes.
    """
    return (
        dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1
    )


def sync_batch_norm(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    momentum: float,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Apply batch norm in training, with the statistics of a process group.

    On a GPU it runs the kernels of :class:`torch.nn.SyncBatchNorm`, and on a
    CPU :class:`SyncBatchNormFunction`.

    Args:
        input (Tensor): Of shape ``(N, C, *)``.
        weight (Tensor): gamma, of shape ``(C,)``.
        bias (Tensor): The applied bias, of shape ``(C,)``.
        running_mean (Tensor, optional): Updated in place.
        running_var (Tensor, optional): Updated in place.
        eps (float): Added to the variance.
        momentum (float): Weight of this batch in the running statistics.
        group (ProcessGroup, optional): Defaults to all processes.

    Returns:
        Tensor: In the shape of ``input``.
    """
    group = group or dist.group.WORLD
    args = (input, weight, bias, running_mean, running_var, eps, momentum, group)
    if input.device.type == 'cpu':
        return SyncBatchNormFunction.apply(*args)
    return cuda_sync_batch_norm.apply(*args, dist.get_world_size(group))


def _all_but_channels(input: Tensor) -> list:
    return [dim for dim in range(input.dim()) if dim != 1]


def _per_channel(values: Tensor, input: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (input.dim() - 2))


class PSSyncBatchNorm(PostShift, _BatchNorm):
    """psBN with the statistics of the batches of a process group.

    In training with more than one process, mean and variance are those of
    the inputs of all processes, whose sizes may differ or be zero. Otherwise
    the layer is :class:`~mmpsbn.layers.PSBatchNorm2d` for inputs of any rank.
    See :func:`~mmpsbn.layers.sync_post_shifted_bn.sync_batch_norm` for what
    it runs on a GPU and on a CPU.

    The class does not inherit from ``torch.nn.SyncBatchNorm``, because
    MMEngine replaces those by BN in every run of one process, and alpha would
    be lost.

    Args:
        num_features (int): ``C``.
        process_group (ProcessGroup, optional): The processes that share
            their statistics. Defaults to all.
        kwargs: See :class:`~mmpsbn.layers.PSBatchNorm2d`.

    Shape:
        - Input: ``(N, C, *)``
        - Output: the shape of the input

    Raises:
        ValueError: In the cases of PSBatchNorm2d, and in training if the
            batches of all processes have one value per channel.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        **kwargs,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, **kwargs
        )
        self.process_group = process_group

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f'expected at least 2D input (got {input.dim()}D input)')

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and in_several_processes(self.process_group)):
            return super().forward(input)
        self._check_input_dim(input)
        mean = var = None
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.track_running_stats:
            mean, var = self.running_mean, self.running_var
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
                if self.momentum is None:
                    momentum = 1 / float(self.num_batches_tracked)
        return sync_batch_norm(
            input,
            self.weight,
            self.bias,
            mean,
            var,
            self.eps,
            momentum,
            self.process_group,
        )
