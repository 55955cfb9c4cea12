"""Real images, as tensors: scikit-learn's digits, or CIFAR-10.

CIFAR-10 is read from its binary version, which is plain bytes; the Python
version is pickles, and a pickle can run code.
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmpsbn.errors import InputError

DATA = ('digits', 'cifar10')
CLASSES = 10
SIDE = 32  # Of a CIFAR-10 image; a record is a label and three planes.
RECORD = 1 + 3 * SIDE * SIDE


class Data(NamedTuple):
    """Images ``(N, C, H, W)``, normalized by the training images."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int

    def to(self, device: str) -> 'Data':
        return Data(*(part.to(device) for part in self[:4]), self.classes)


@lru_cache(maxsize=4)
def load(name: str, root: str | None, half: int | None) -> Data:
    """The images of all classes, or of one half of them.

    Args:
        name (str): One of ``DATA``.
        root (str, optional): The folder of CIFAR-10's binary version.
        half (int, optional): 0 for the first five classes, 1 for the others;
            labels count from 0 in each.

    Raises:
        InputError: If CIFAR-10 is not there, or not whole.
    """
    train, test = cifar10(root) if name == 'cifar10' else digits()
    if half is not None:
        train, test = (_half(*split, half) for split in (train, test))
    images = train[0]
    mean = images.mean((0, 2, 3), keepdim=True)
    std = images.std((0, 2, 3), keepdim=True)
    return Data(
        (images - mean) / std,
        train[1],
        (test[0] - mean) / std,
        test[1],
        CLASSES if half is None else CLASSES // 2,
    )


def digits() -> tuple[tuple[Tensor, Tensor], ...]:
    """1198 training and 599 test images of 8 x 8, the same in every run."""
    # CIFAR-10 does not need it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    images = torch.tensor(found.images[:, None] / 16, dtype=torch.float32)
    labels = torch.tensor(found.target)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=1 / 3, random_state=0, stratify=found.target
    )
    return (images[train], labels[train]), (images[test], labels[test])


def cifar10(root: str | None) -> tuple[tuple[Tensor, Tensor], ...]:
    """Training and test images of 3 x 32 x 32."""
    batches = [f'data_batch_{number}.bin' for number in range(1, 6)]
    return _read(root, *batches), _read(root, 'test_batch.bin')


def _read(root: str | None, *names: str) -> tuple[Tensor, Tensor]:
    records = []
    for name in names:
        file = Path(root or '.') / name
        if root is None or not file.is_file():
            raise InputError(
                f'CIFAR-10 has not been found: --data-root is {root} and has '
                f'no {name}; name the folder with the files of the binary '
                'version (cifar-10-binary.tar.gz), not those of the Python '
                'version, which are pickles.'
            )
        read = np.fromfile(file, np.uint8)
        if not read.size or read.size % RECORD or read[::RECORD].max() >= CLASSES:
            raise InputError(
                f'{file} ({read.size} bytes) is not a whole file of '
                f"CIFAR-10's binary version, which has records of {RECORD} "
                'bytes that begin with a label from 0 to 9; fetch it again.'
            )
        records.append(read.reshape(-1, RECORD))
    read = torch.from_numpy(np.concatenate(records))
    images = read[:, 1:].reshape(-1, 3, SIDE, SIDE)
    return images.float() / 255, read[:, 0].long()


def _half(images: Tensor, labels: Tensor, half: int) -> tuple[Tensor, Tensor]:
    first = half * (CLASSES // 2)
    mine = (labels >= first) & (labels < first + CLASSES // 2)
    return images[mine], labels[mine] - first
