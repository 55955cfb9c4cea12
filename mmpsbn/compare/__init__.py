from .costs import Cost, measure_costs
from .placing import NORMS, with_norm
from .report import write_report
from .runs import Comparison, Run

__all__ = [
    'Comparison', 'Cost', 'NORMS', 'Run', 'measure_costs', 'with_norm',
    'write_report'
]
