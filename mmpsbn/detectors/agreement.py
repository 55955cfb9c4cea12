"""Whether two models compute the same on images."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmpsbn.detectors.outputs import (
    BatchRunner,
    largest_difference,
    rounding_noise,
    same_detections,
)
from mmpsbn.errors import InputError

# Rounding changes raw outputs by less than this share of the largest one.
TOLERANCE = 1e-4
# Rounding changes less than this share of the detections, through NMS.
CHANGED_SHARE = 0.01
# How often a model is run with noise to see which detections rounding changes.
DRAWS = 4


class Agreement(NamedTuple):
    """How a new model compares with the trained one."""

    images: int
    difference: float
    """Largest difference of raw outputs, relative to the largest of each."""
    detections: int
    """Detections of the model that has more of them, image by image."""
    same: int
    """Detections that both models have."""
    unstable: int = 0
    """Detections of the trained model that rounding changes in the worst of a few
    draws, for example because boxes have equal scores. Only counted if detections
    differ. Another runtime may change twice as many."""

    @classmethod
    def with_model(
        cls,
        raw: Sequence[Tensor],
        expected_raw: Sequence[Tensor],
        detections: Sequence[dict],
        model: nn.Module,
        run: BatchRunner,
    ) -> 'Agreement':
        """Compare outputs with those of the trained model on the same images.

        Args:
            raw (list[Tensor]): The raw outputs of a new model, of any shape.
            expected_raw (list[Tensor]): Those of the trained model.
            detections (list[dict]): Its detections in each image.
            model (nn.Module): The trained model.
            run (BatchRunner): The images.
        """
        expected = run.detections(model)
        found = cls.measure(raw, expected_raw, detections, expected)
        if found.same == found.detections:
            return found
        changed = []
        with torch.random.fork_rng(devices=[]), rounding_noise(model):
            for seed in range(DRAWS):
                torch.manual_seed(seed)
                detections, same = _count(run.detections(model), expected)
                changed.append(detections - same)
        return found._replace(unstable=max(changed))

    @classmethod
    def measure(
        cls,
        raw: Sequence[Tensor],
        expected_raw: Sequence[Tensor],
        detections: Sequence[dict],
        expected: Sequence[dict],
    ) -> 'Agreement':
        """Compare two models.

        Args:
            raw (list[Tensor]): The raw outputs of one, of any shape.
            expected_raw (list[Tensor]): Those of the other.
            detections (list[dict]): The detections of one in each image, see
                :func:`~mmpsbn.detectors.outputs.same_detections`.
            expected (list[dict]): Those of the other.
        """
        return cls(
            len(expected),
            largest_difference(raw, expected_raw),
            *_count(detections, expected),
        )

    @classmethod
    def total(cls, parts: Iterable['Agreement']) -> 'Agreement':
        """Combine the agreement on several batches of images."""
        images, differences, detections, same, unstable = zip(*parts)
        # Python's max ignores NaN behind a number.
        unknown = any(map(math.isnan, differences))
        difference = math.nan if unknown else max(differences)
        return cls(sum(images), difference, *map(sum, (detections, same, unstable)))

    def require(self, model: str, other: str = 'the trained model') -> None:
        """Raise an InputError unless both models compute the same.

        Args:
            model (str): The new model, for the message.
            other (str): The model that it was compared with.
        """
        changed = self.detections - self.same
        allowed = max(1, CHANGED_SHARE * self.detections, 2 * self.unstable)
        if not self.difference <= TOLERANCE or changed > allowed:
            raise InputError(
                f'the outputs of {model} differ from those of {other} by '
                f'{self.difference:.1e} of their size (rounding explains up to '
                f'{TOLERANCE:.0e}), and {self.same} of {self.detections} detections '
                f'are the same (rounding explains up to {allowed:.0f} changed ones). '
                'Nothing was written; please report it.'
            )

    def __str__(self) -> str:
        text = (
            f'raw outputs differ by at most {self.difference:.1e} of the largest, '
            f'{self.same} of {self.detections} detections are the same.'
        )
        if self.unstable:
            text += (
                f' Rounding alone changes up to {self.unstable} detections of the '
                'trained model. If these are many, boxes have equal scores, as in a '
                'collapsed detector.'
            )
        return text


def _count(detections: Sequence[dict], expected: Sequence[dict]) -> tuple[int, int]:
    """Count detections, image by image those of the model with more, and the same."""
    most = (
        max(len(one['labels']), len(other['labels']))
        for one, other in zip(detections, expected)
    )
    return sum(most), sum(map(same_detections, detections, expected))
