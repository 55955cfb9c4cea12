"""A small detection task of real images, in the layout of COCO2017.

Scenes are crops of scikit-learn's two sample photographs, with one to four
of its 1797 handwritten digits (8 x 8 pixels, from the UCI optical recognition
set) drawn over them in a color, with a box and a class each. A digit and a
strip of a photograph that serve in train2017 never serve in val2017.
"""

import json
import os
import shutil
from collections.abc import Iterator

import cv2
import numpy as np

CLASSES = tuple(map(str, range(10)))
SPLITS = ('train2017', 'val2017')
DESCRIPTION = 'digits on photographs, made by mmpsbn'
# Of the digits and of each photograph's width, what belongs to train2017.
TRAIN_SHARE = 0.8
# Side of a digit in pixels, as a share of the side of the scene.
DIGIT_SIDES = (0.2, 0.45)


def make_digits(
    out: str, train: int = 800, val: int = 200, size: int = 160, seed: int = 0
) -> None:
    """Write the task to ``out``: annotations/, train2017/, val2017/.

    Equal arguments give equal files. The folder appears when it is complete.

    Args:
        out (str): The folder to make.
        train (int): Number of scenes in train2017. Defaults to 800.
        val (int): Number of scenes in val2017. Defaults to 200.
        size (int): Side of a scene in pixels, 64 to 400. Defaults to 160.
        seed (int): Of the random choices. Defaults to 0.

    Raises:
        ValueError: If a number is out of its range.
        FileExistsError: If ``out`` exists.
        ModuleNotFoundError: If scikit-learn is missing.
    """
    if train < 1 or val < 1 or not 64 <= size <= 400 or seed < 0:
        raise ValueError(
            f'got train={train}, val={val}, size={size}, seed={seed}, but '
            'train and val must be at least 1, size from 64 to 400 and seed '
            'at least 0.'
        )
    if os.path.lexists(out):
        raise FileExistsError(f'{out} exists; remove it, or choose another folder.')
    partial = f'{os.path.normpath(out)}.partial'
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(os.path.join(partial, 'annotations'))
    for index, (split, number) in enumerate(zip(SPLITS, (train, val))):
        rng = np.random.default_rng([seed, index])
        content = _make_split(os.path.join(partial, split), split, number, size, rng)
        content['info'].update(seed=seed, size=size)
        file = os.path.join(partial, 'annotations', f'instances_{split}.json')
        with open(file, 'w') as stream:
            json.dump(content, stream)
    os.replace(partial, out)


def _make_split(
    folder: str, split: str, number: int, size: int, rng: np.random.Generator
) -> dict:
    os.makedirs(folder)
    images, annotations = [], []
    scenes = draw_scenes(*material(split), number, size, rng)
    for image_id, (scene, boxes) in enumerate(scenes, 1):
        file_name = f'{image_id:012d}.jpg'
        for box, label in boxes:
            x, y, width, height = box
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image_id,
                    category_id=int(label) + 1,
                    bbox=[x, y, width, height],
                    area=width * height,
                    iscrowd=0,
                )
            )
        # OpenCV's own writer says nothing of a full disk.
        jpeg = cv2.imencode('.jpg', scene, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
        with open(os.path.join(folder, file_name), 'wb') as stream:
            stream.write(jpeg)
        images.append(dict(id=image_id, file_name=file_name, width=size, height=size))
    categories = [
        dict(id=index + 1, name=name, supercategory='digit')
        for index, name in enumerate(CLASSES)
    ]
    return dict(
        info=dict(description=DESCRIPTION),
        licenses=[],
        images=images,
        annotations=annotations,
        categories=categories,
    )


def material(split: str) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Load what the scenes of a split are made of.

    Args:
        split (str): One of ``SPLITS``.

    Returns:
        tuple: The digits ``(N, 8, 8)`` with values from 0 to 1, their labels
        ``(N,)``, and the BGR photographs.

    Raises:
        ModuleNotFoundError: If scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ModuleNotFoundError as error:
        if error.name.split('.')[0] != 'sklearn':
            raise
        raise ModuleNotFoundError(
            'the digits come from scikit-learn; install it with '
            'pip install scikit-learn.'
        ) from error
    data = load_digits()
    digits, labels = data.images / 16, data.target
    photographs = [image[..., ::-1] for image in load_sample_images().images]
    first = int(len(digits) * TRAIN_SHARE)
    chosen = slice(first) if split == 'train2017' else slice(first, None)
    strips = []
    for photograph in photographs:
        edge = int(photograph.shape[1] * TRAIN_SHARE)
        columns = slice(edge) if split == 'train2017' else slice(edge, None)
        strips.append(photograph[:, columns])
    return digits[chosen], labels[chosen], strips


def draw_scenes(
    digits: np.ndarray,
    labels: np.ndarray,
    photographs: list[np.ndarray],
    number: int,
    size: int,
    rng: np.random.Generator,
) -> Iterator[tuple[np.ndarray, list]]:
    """Draw scenes from the result of :func:`material`, or from a part of it.

    Args:
        digits (np.ndarray): The digits, ``(N, 8, 8)``.
        labels (np.ndarray): Their labels, ``(N,)``.
        photographs (list[np.ndarray]): The BGR photographs.
        number (int): The number of scenes.
        size (int): The side of a scene in pixels.
        rng (np.random.Generator): The source of all random choices.

    Yields:
        tuple: A BGR scene, and for each digit its box ``(x, y, width,
        height)`` and its label.
    """
    for _ in range(number):
        scene = _background(photographs, size, rng)
        yield scene, _draw_digits(scene, digits, labels, rng)


def _background(photographs: list, size: int, rng: np.random.Generator) -> np.ndarray:
    """A square crop of a photograph, half to once its narrower side."""
    photograph = photographs[rng.integers(len(photographs))]
    height, width = photograph.shape[:2]
    side = int(min(height, width) * rng.uniform(0.5, 1))
    x = rng.integers(width - side + 1)
    y = rng.integers(height - side + 1)
    crop = photograph[y : y + side, x : x + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return cv2.resize(np.ascontiguousarray(crop), (size, size))


def _draw_digits(
    scene: np.ndarray, digits: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> list:
    """Draw one to four digits that do not touch; their boxes and labels."""
    size, drawn = len(scene), []
    for _ in range(rng.integers(1, 5)):
        index = rng.integers(len(digits))
        side = int(size * rng.uniform(*DIGIT_SIDES))
        ink = cv2.resize(
            digits[index], (side, side), interpolation=cv2.INTER_CUBIC
        ).clip(0, 1)
        rows, columns = np.where(ink.max(1) > 0.3)[0], np.where(ink.max(0) > 0.3)[0]
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = ink.shape
        for _ in range(20):
            x = int(rng.integers(size - width + 1))
            y = int(rng.integers(size - height + 1))
            if not any(
                x < a + c and a < x + width and y < b + d and b < y + height
                for (a, b, c, d), _ in drawn
            ):
                break
        else:
            continue
        region = scene[y : y + height, x : x + width]
        # Bright on dark ground, dark on bright ground.
        low, high = (170, 256) if region.mean() < 128 else (0, 70)
        color = rng.integers(low, high, size=3)
        mask = ink[..., None]
        region[:] = (region * (1 - mask) + color * mask).round()
        drawn.append(((x, y, width, height), labels[index]))
    return drawn
