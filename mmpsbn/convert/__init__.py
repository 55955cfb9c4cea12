"""Checkpoints converted between BN, psBN and MimicNorm."""

from .conversion import (
    Verification,
    convert_to_mimicnorm,
    convert_to_psbn,
    convert_to_stock,
)

__all__ = [
    'Verification',
    'convert_to_mimicnorm',
    'convert_to_psbn',
    'convert_to_stock',
]
