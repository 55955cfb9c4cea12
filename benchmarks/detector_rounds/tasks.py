"""The tasks of the rounds: scenes with digits of five classes.

They depend on the seed and the round alone, so all methods see the same ones.
The data stays in memory.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from mmpsbn.datasets.digits import SPLITS, draw_scenes, material

CLASSES = 5
SIZE = 96
BATCH, TEST = 8, 80
ROUND = dict(training=160, epochs=5)
# RetinaNet learns more slowly.
START = {
    'faster-rcnn': dict(training=400, epochs=16),
    'retinanet': dict(training=400, epochs=64),
}
STEPS = ROUND['training'] // BATCH * ROUND['epochs']

_material = lru_cache(material)
Images = list[tuple[torch.Tensor, DetDataSample]]


class Task(NamedTuple):
    """The scenes of a round."""

    train: Images
    test: Images
    batches: np.ndarray
    """The indices of the training scenes in each step, ``(steps, BATCH)``."""


def task_of(seed: int, number: int, training: int, epochs: int) -> Task:
    """Draw the task of a round.

    Args:
        seed (int): The seed of the run.
        number (int): The number of the round, 0 for the starting detector.
        training (int): The number of training scenes.
        epochs (int): How often each of them is seen.
    """
    random = np.random.default_rng([seed, number])
    classes = random.permutation(10)[:CLASSES]
    photograph, inverted = random.integers(2, size=2)
    channels = random.permutation(3)
    splits = []
    for split, count in zip(SPLITS, (training, TEST)):
        digits, labels, photographs = _material(split)
        known = np.isin(labels, classes)
        background = photographs[photograph][..., channels]
        scenes = draw_scenes(
            digits[known],
            # Labels are places in ``classes``.
            (labels[known][:, None] == classes).argmax(1),
            [255 - background if inverted else background],
            count,
            SIZE,
            random,
        )
        splits.append([_image(index, *scene) for index, scene in enumerate(scenes)])
    batches = [
        random.permutation(training)[: training // BATCH * BATCH] for _ in range(epochs)
    ]
    return Task(*splits, np.concatenate(batches).reshape(-1, BATCH))


def collate(images: Sequence[tuple[torch.Tensor, DetDataSample]]) -> dict:
    """Make a batch as MMEngine's data loaders do."""
    inputs, samples = zip(*images)
    return dict(inputs=list(inputs), data_samples=list(samples))


def _image(number: int, scene: np.ndarray, drawn: list) -> tuple:
    """Convert a scene to the inputs of a detector.

    ``instances`` is the ground truth in the form that CocoMetric reads.
    """
    instances = [
        dict(bbox=[x, y, x + width, y + height], bbox_label=int(label), ignore_flag=0)
        for (x, y, width, height), label in drawn
    ]
    shape = scene.shape[:2]
    sample = DetDataSample(
        metainfo=dict(
            img_id=number,
            img_shape=shape,
            ori_shape=shape,
            scale_factor=(1.0, 1.0),
            instances=instances,
        )
    )
    boxes = [instance['bbox'] for instance in instances]
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        labels=torch.tensor([instance['bbox_label'] for instance in instances]),
    )
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
    )
    pixels = np.ascontiguousarray(scene.transpose(2, 0, 1))
    return torch.from_numpy(pixels), sample
