"""Configs: read, completed, and checked together with the data they name."""

from .reading import read_config

__all__ = ['read_config']
