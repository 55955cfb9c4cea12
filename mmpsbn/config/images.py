"""Image files that can be read."""

import os
import os.path as osp
from collections.abc import Sequence

import mmcv

from mmpsbn.errors import InputError

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp')


def list_images(folder: str) -> list[str]:
    """The images of a folder, by name.

    Raises:
        InputError: If it cannot be read, or has none.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f'{folder} cannot be read ({error.strerror}).') from error
    images = [osp.join(folder, name) for name in names if name.lower().endswith(IMAGES)]
    if not images:
        raise InputError(f'{folder} has no image ({", ".join(IMAGES)}).')
    return images


def check_images(files: Sequence[str]) -> None:
    """Raise for an image that cannot be read.

    Raises:
        InputError: With its name.
    """
    for file in files:
        if not is_readable(file):
            raise InputError(f'the image {file} cannot be read.')


def is_readable(file: str) -> bool:
    try:
        return mmcv.imread(file) is not None
    except Exception:  # Of OpenCV, for an empty file, or of the disk.
        return False
