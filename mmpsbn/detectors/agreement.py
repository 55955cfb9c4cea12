"""Whether two models compute the same on images."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from mmpsbn.detectors.outputs import largest_difference, same_detections
from mmpsbn.errors import InputError

# Rounding changes raw outputs by less than this share of the largest one.
TOLERANCE = 1e-4
# Rounding changes less than this share of the detections, through NMS.
CHANGED_SHARE = 0.01


class Agreement(NamedTuple):
    """How a new model compares with the trained one."""

    images: int
    difference: float
    """Largest difference of raw outputs, relative to the largest of each."""
    detections: int
    """Detections of the model that has more of them, image by image."""
    same: int
    """Detections that both models have."""

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
            sum(
                max(len(one['labels']), len(other['labels']))
                for one, other in zip(detections, expected)
            ),
            sum(map(same_detections, detections, expected)),
        )

    @classmethod
    def total(cls, parts: Iterable['Agreement']) -> 'Agreement':
        """Combine the agreement on several batches of images."""
        images, differences, detections, same = zip(*parts)
        # Python's max ignores NaN behind a number.
        unknown = any(map(math.isnan, differences))
        difference = math.nan if unknown else max(differences)
        return cls(sum(images), difference, sum(detections), sum(same))

    def require(self, model: str, other: str = 'the trained model') -> None:
        """Raise an InputError unless both models compute the same.

        Args:
            model (str): The new model, for the message.
            other (str): The model that it was compared with.
        """
        changed = self.detections - self.same
        if not self.difference <= TOLERANCE or changed > max(
            1, CHANGED_SHARE * self.detections
        ):
            raise InputError(
                f'the outputs of {model} differ from those of {other} by '
                f'{self.difference:.1e} of their size (rounding explains up to '
                f'{TOLERANCE:.0e}), and {self.same} of {self.detections} detections '
                f'are the same (rounding changes up to {CHANGED_SHARE:.0%}). Nothing '
                'was written; please report it.'
            )

    def __str__(self) -> str:
        return (
            f'raw outputs differ by at most {self.difference:.1e} of the largest, '
            f'{self.same} of {self.detections} detections are the same.'
        )
