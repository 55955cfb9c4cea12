from .collapse import ChannelWatch, positive_probability
from .memory import saved_bytes

__all__ = ['ChannelWatch', 'positive_probability', 'saved_bytes']
