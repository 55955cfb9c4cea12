"""The training loop, and the accuracy that it reaches."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import Data

MOMENTUM = 0.9
BATCHES = dict(digits=32, cifar10=128)  # The usual batch of each data set.
EVALUATED = 512  # Images in one forward pass.
AUGMENTED = frozenset(['cifar10'])  # Data sets that are augmented.
PADDING = 4  # Of random crops.


def fit(
    net: nn.Module,
    data: Data,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batch: int,
    augment: bool = False,
    after_step: Callable[[int], None] = lambda step: None,
) -> bool:
    """Train by cross entropy, with new random batches in each epoch.

    The lr rises for an epoch and goes to 0 by a cosine.

    Args:
        net (nn.Module): The classifier.
        data (Data): On its device.
        optimizer (torch.optim.Optimizer): With the highest lr.
        epochs (int): How many.
        batch (int): Images of a step; the rest of an epoch is left out.
        augment (bool): Whether to flip and crop the images at random, as is
            usual for CIFAR.
        after_step (callable): Called with the number of steps made.

    Returns:
        bool: Whether the loss was finite in all steps. Another loss ends the
        training.
    """
    per_epoch = len(data.train_labels) // batch
    steps = epochs * per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1, (step + 1) / per_epoch) * (1 + math.cos(math.pi * step / steps)) / 2
        ),
    )
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(data.train_labels))
            batches = order.to(data.train_labels.device).split(batch)
        chosen = batches[step % per_epoch]
        net.train()
        images = data.train_images[chosen]
        if augment:
            images = flipped_and_cropped(images)
        loss = F.cross_entropy(net(images), data.train_labels[chosen])
        if not loss.isfinite():
            return False
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        after_step(step + 1)
    return True


def flipped_and_cropped(images: Tensor) -> Tensor:
    """Flip half of some images, and shift each by up to 4 pixels.

    Args:
        images (Tensor): Of shape ``(N, C, H, W)``.

    Returns:
        Tensor: Of the same shape; what is shifted in is 0, the mean of the
        training images.
    """
    number, _, height, width = images.shape
    flip = torch.rand(number, 1, 1, 1) < 0.5
    down, right = torch.randint(2 * PADDING + 1, (2, number, 1))
    rows = (down + torch.arange(height)).to(images.device)
    columns = (right + torch.arange(width)).to(images.device)
    images = images.flip(3).where(flip.to(images.device), images)
    padded = F.pad(images, [PADDING] * 4)
    every = torch.arange(number, device=images.device)[:, None, None]
    return padded[every, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(net: nn.Module, data: Data) -> float:
    """Compute the share of test images that are classified correctly."""
    net.eval()
    right = sum(
        int((net(images).argmax(1) == labels).sum())
        for images, labels in zip(
            data.test_images.split(EVALUATED), data.test_labels.split(EVALUATED)
        )
    )
    return right / len(data.test_labels)
