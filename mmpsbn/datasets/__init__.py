from mmpsbn.datasets.classes import read_classes
from mmpsbn.datasets.digits import make_digits

__all__ = ['make_digits', 'read_classes']
