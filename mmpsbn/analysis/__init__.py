from .collapse import ChannelWatch, positive_probability
from .memory import saved_bytes
from .timing import ratios, turns

__all__ = [
    'ChannelWatch', 'positive_probability', 'ratios', 'saved_bytes', 'turns'
]
