"""Hooks of MMEngine's Runner that watch and check a training."""

from .data_check_hook import DataCheckHook
from .filter_collapse_hook import FilterCollapseHook
from .non_finite_hook import NonFiniteHook
from .norm_check_hook import LevelWatch, NormCheckHook, find_idle_norms

__all__ = [
    'DataCheckHook',
    'FilterCollapseHook',
    'LevelWatch',
    'NonFiniteHook',
    'NormCheckHook',
    'find_idle_norms',
]
