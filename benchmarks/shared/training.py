"""The training loop, and the accuracy that it reaches."""

import math
from typing import Callable, Optional

import torch
from torch import nn
from torch.nn import functional as F

from .data import Data

BATCH, MOMENTUM = 32, 0.9
EVALUATED = 512  # Images at once.


def fit(net: nn.Module,
        data: Data,
        optimizer: torch.optim.Optimizer,
        epochs: int,
        batch: int = BATCH,
        after_step: Callable[[int], None] = lambda step: None
        ) -> Optional[float]:
    """Train by cross entropy, with new random batches in each epoch.

    The lr rises for an epoch and goes to 0 by a cosine.

    Args:
        net (nn.Module): The classifier.
        data (Data): On its device.
        optimizer (torch.optim.Optimizer): With the highest lr.
        epochs (int): How many.
        batch (int): Images of a step; the rest of an epoch is left out.
        after_step (callable): Called with the number of steps made.

    Returns:
        float: Loss of the last batch, or None where it was not finite, which
        ends the training.
    """
    per_epoch = len(data.train_labels) // batch
    steps = epochs * per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / per_epoch) *
        (1 + math.cos(math.pi * step / steps)) / 2)
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(data.train_labels))
            batches = order.to(data.train_labels.device).split(batch)
        chosen = batches[step % per_epoch]
        net.train()
        loss = F.cross_entropy(net(data.train_images[chosen]),
                               data.train_labels[chosen])
        if not loss.isfinite():
            return None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        after_step(step + 1)
    return loss.item()


@torch.no_grad()
def accuracy(net: nn.Module, data: Data) -> float:
    """The share of the test images that is classified rightly."""
    net.eval()
    right = sum(
        int((net(images).argmax(1) == labels).sum()) for images, labels in zip(
            data.test_images.split(EVALUATED),
            data.test_labels.split(EVALUATED)))
    return right / len(data.test_labels)
