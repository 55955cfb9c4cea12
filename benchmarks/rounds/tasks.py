"""The tasks of the rounds: two random classes, and the order of the batches.

They depend on the seed and the round alone, so all methods see the same ones.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.shared.data import Data, load

TRAINING, TEST = 600, 300  # The most images of a class.
BATCH = 64
# Each gives about 110 steps.
EPOCHS = dict(cifar10=6, digits=36)


class Task(NamedTuple):
    """The images of two classes, which have the labels 0 and 1."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    batches: Tensor
    """The indices of the training images in each step, ``(steps, BATCH)``."""


@lru_cache(maxsize=1)
def images(name: str, root: str | None, device: str) -> Data:
    """Load all images. Those of CIFAR-10 are reduced to 16 x 16.

    Args:
        name (str): ``'cifar10'`` or ``'digits'``.
        root (str, optional): The folder of CIFAR-10.
        device (str): The device of the tensors.

    Raises:
        InputError: If CIFAR-10 is missing or damaged.
    """
    data = load(name, root, None)
    load.cache_clear()  # The full size of CIFAR-10 takes 0.7 GB.
    if name == 'cifar10':
        data = data._replace(
            train_images=F.avg_pool2d(data.train_images, 2),
            test_images=F.avg_pool2d(data.test_images, 2),
        )
    return data.to(device)


def task_of(name: str, data: Data, seed: int, number: int) -> Task:
    """Draw the task of a round.

    Args:
        name (str): The data set.
        data (Data): All images of the data set.
        seed (int): The seed of the run.
        number (int): The number of the round.
    """
    random = np.random.default_rng([seed, number])
    classes = random.choice(data.classes, 2, replace=False)
    parts = []
    for all_images, labels, most in (
        (data.train_images, data.train_labels, TRAINING),
        (data.test_images, data.test_labels, TEST),
    ):
        of_class = labels.cpu().numpy()
        own = [
            random.permutation(np.flatnonzero(of_class == label))[:most]
            for label in classes
        ]
        chosen = torch.from_numpy(np.concatenate(own)).to(labels.device)
        # This memory format takes a quarter less time on a CPU.
        parts += [
            all_images[chosen].contiguous(memory_format=torch.channels_last),
            (labels[chosen] == int(classes[1])).long(),
        ]
    count = len(parts[1])
    batches = [
        random.permutation(count)[: count // BATCH * BATCH] for _ in range(EPOCHS[name])
    ]
    return Task(
        *parts,
        torch.from_numpy(np.concatenate(batches))
        .view(-1, BATCH)
        .to(data.train_labels.device),
    )
