from .stack import check_stack

check_stack()

from . import analysis, datasets, engine, layers, models  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = [
    '__version__', 'analysis', 'datasets', 'engine', 'layers', 'models'
]
