"""Checkpoints: read without running code, compared with models, written whole."""

from .matching import load_weights
from .reading import Checkpoint, read_checkpoint

__all__ = ['Checkpoint', 'load_weights', 'read_checkpoint']
