"""Detectors: built from configs, and run on images to compare them."""

from .agreement import Agreement
from .build import build_model, load_images, load_model

__all__ = ['Agreement', 'build_model', 'load_images', 'load_model']
