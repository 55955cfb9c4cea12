"""A batch norm in evaluation mode, folded into the layer before it."""

from typing import Optional, Tuple

import torch
from torch import Tensor


def fold_batch_norm(weight: Tensor,
                    bias: Optional[Tensor],
                    mean: Tensor,
                    var: Tensor,
                    gamma: Optional[Tensor],
                    beta: Optional[Tensor],
                    eps: float) -> Tuple[Tensor, Tensor]:
    """Weight and bias of the one layer that computes what both do.

    Args:
        weight (Tensor): Of a conv or linear layer, ``(C, *)``.
        bias (Tensor, optional): Of that layer, ``(C,)``, as are all below.
        mean (Tensor): Running mean.
        var (Tensor): Running variance.
        gamma (Tensor, optional): None for 1.
        beta (Tensor, optional): The bias that is applied; None for 0.
        eps (float): Added to the variance.
    """
    scale = torch.rsqrt(var + eps)
    if gamma is not None:
        scale = scale * gamma
    shift = -mean * scale
    if beta is not None:
        shift = shift + beta
    if bias is not None:
        shift = shift + bias * scale
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), shift
