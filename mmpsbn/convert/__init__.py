"""Checkpoints converted between BN, psBN and MimicNorm."""

from .conversion import convert_to_mimicnorm, convert_to_psbn, convert_to_stock

__all__ = ['convert_to_mimicnorm', 'convert_to_psbn', 'convert_to_stock']
