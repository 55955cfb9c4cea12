from mmpsbn.analysis.collapse import ChannelWatch, positive_probability
from mmpsbn.analysis.memory import saved_bytes
from mmpsbn.analysis.model import CollapseReport, collapse_report
from mmpsbn.analysis.timing import ratios, time_alternately

__all__ = [
    'ChannelWatch',
    'CollapseReport',
    'collapse_report',
    'positive_probability',
    'ratios',
    'saved_bytes',
    'time_alternately',
]
