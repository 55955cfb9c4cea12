from mmpsbn.stack import check_detection

check_detection()

from .checkpoint import allow_mmengine_checkpoints
from .data_check_hook import DataCheckHook
from .filter_collapse_hook import FilterCollapseHook
from mmpsbn.errors import InputError
from .non_finite_hook import NonFiniteHook
from .norm_check_hook import LevelWatch, NormCheckHook, find_idle_norms

allow_mmengine_checkpoints()

__all__ = [
    'DataCheckHook', 'FilterCollapseHook', 'InputError', 'LevelWatch',
    'NonFiniteHook', 'NormCheckHook', 'find_idle_norms'
]
