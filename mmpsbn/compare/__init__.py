from .costs import Cost, measure_costs
from .placing import NORMS, with_norm
from .report import write_report
from .runs import Comparison, Run
from .session import carry_out

__all__ = [
    'Comparison', 'Cost', 'NORMS', 'Run', 'carry_out', 'measure_costs',
    'with_norm', 'write_report'
]
