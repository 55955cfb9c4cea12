from .stack import check_stack

check_stack()

from . import datasets, engine, layers, models  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = ['__version__', 'datasets', 'engine', 'layers', 'models']
