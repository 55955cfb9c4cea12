"""What benchmarks of memory share."""

from collections.abc import Callable

import torch
from torch import nn

from mmpsbn.layers import MimicConv


class PublishedMimicConv(MimicConv):
    """The scalar on the activation, as in MimicNorm's published code."""

    def forward(self, input):
        output = self._conv_forward(input, self.weight, self.bias)
        return output if self.scale is None else output * self.scale


def fits(net: nn.Module, step: Callable[[], None]) -> bool:
    """Return whether a GPU has the memory for a training step, and free it.

    Args:
        net (nn.Module): Its gradients are deleted.
        step (callable): It also makes the batch.
    """
    try:
        step()
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        net.zero_grad()
        torch.cuda.empty_cache()
    return True


def largest_batch(fits: Callable[[int], bool]) -> int:
    """Return the largest batch that fits, to a sixteenth.

    Args:
        fits (callable): Returns whether a number of images fits.
    """
    most, least = 0, None  # That fit, and that do not.
    batch = 2
    while least is None or least - most > max(1, most // 16):
        if fits(batch):
            most = batch
        else:
            least = batch
        batch = 2 * most if least is None else (most + least) // 2
    return most
