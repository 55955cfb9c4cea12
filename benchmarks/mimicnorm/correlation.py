"""How similar activations are, at every ReLU of a network.

According to arXiv:2010.09278, centered filters decorrelate channels and keep the
activations of different images apart, as BN does.
"""

import copy
import math

import torch
from torch import Tensor, nn

from benchmarks.shared.rows import Numbers

MEASURES = {
    'channels': 'mean absolute correlation of two channels',
    'images': 'mean cosine of two images',
}


@torch.no_grad()
def correlations(net: nn.Module, images: Tensor) -> dict[str, Numbers]:
    """Measure the input of each ReLU, normalized by these images as in training.

    Args:
        net (nn.Module): A network with modules of ``nn.ReLU``; it is not changed.
        images (Tensor): Images of shape ``(N, C, H, W)``.

    Returns:
        dict: For each measure its value at each call of a ReLU, in their
        order; NaN where it is not finite.
    """
    net = copy.deepcopy(net).train()
    found: dict[str, list[float]] = {name: [] for name in MEASURES}

    def look(module, inputs):
        x = inputs[0].double()
        for name, measure in (
            ('channels', between_channels),
            ('images', between_images),
        ):
            value = measure(x) if x.isfinite().all() else None
            found[name].append(math.nan if value is None else round(value.item(), 5))

    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(look)
    net(images)
    return {name: Numbers(values) for name, values in found.items()}


def between_channels(x: Tensor) -> Tensor | None:
    """Mean absolute correlation of two channels over images and positions.

    Channels that are constant have none, and are left out.

    Args:
        x (Tensor): ``(N, C, H, W)``.
    """
    channels = x.transpose(0, 1).flatten(1)
    channels = channels[channels.std(1) > 0]
    if len(channels) < 2:
        return None
    return _mean_of_pairs(torch.corrcoef(channels).abs())


def between_images(x: Tensor) -> Tensor:
    """Mean cosine of two images' activations.

    Args:
        x (Tensor): ``(N, C, H, W)``.
    """
    images = nn.functional.normalize(x.flatten(1))
    return _mean_of_pairs(images @ images.T)


def _mean_of_pairs(matrix: Tensor) -> Tensor:
    """Without the diagonal."""
    count = len(matrix)
    return (matrix.sum() - matrix.trace()) / (count * (count - 1))
