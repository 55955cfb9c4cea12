from .classes import read_classes
from .digits import make_digits

__all__ = ['make_digits', 'read_classes']
