"""Image files that can be read."""

import os
import os.path as osp
from collections.abc import Sequence

import mmcv

from mmpsbn.errors import InputError

ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp')


def list_images(folder: str) -> list[str]:
    """Return the images of a folder, sorted by name.

    Raises:
        InputError: If the folder cannot be read, or has no image.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(
            f'{folder} cannot be read ({error.strerror}). Name a folder of images.'
        ) from error
    names = [name for name in names if name.lower().endswith(ENDINGS)]
    if not names:
        raise InputError(
            f'{folder} has no images ({", ".join(ENDINGS)}). Name a folder of images.'
        )
    return [osp.join(folder, name) for name in names]


def check_images(files: Sequence[str]) -> None:
    """Raise an InputError with the first image that cannot be read."""
    for file in files:
        if not is_readable(file):
            raise InputError(
                f'the image {file} cannot be read. Replace the file, or remove it.'
            )


def is_readable(file: str) -> bool:
    """Return whether an image can be read."""
    try:
        return mmcv.imread(file) is not None
    except Exception:  # OpenCV raises for an empty file, or the disk fails.
        return False
