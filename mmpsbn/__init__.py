"""psBN and MimicNorm.

The layers need only torch. With MMEngine and MMCV, they are registered for
``norm_cfg`` and ``conv_cfg``. With MMDetection, heads, a backbone and hooks
are registered, too, and torch may read MMEngine's checkpoints.
"""

from . import analysis, layers
from .layers import *  # noqa: F403
from .stack import check_stack, is_installed
from .version import __version__

__all__ = ['__version__', 'analysis', 'layers', *layers.__all__]

if is_installed('mmengine', 'mmcv'):
    check_stack()
    from . import registry  # noqa: F401

    if is_installed('mmdet'):
        from . import datasets, hooks, models  # noqa: F401
        from .checkpoints.reading import allow_mmengine_checkpoints

        allow_mmengine_checkpoints()
        __all__ += ['datasets', 'hooks', 'models']
