from mmpsbn.compare.costs import Cost, measure_costs
from mmpsbn.compare.placing import NORMS, replace_norm
from mmpsbn.compare.report import write_report
from mmpsbn.compare.runs import Comparison, Run
from mmpsbn.compare.session import run_comparison

__all__ = [
    'Comparison',
    'Cost',
    'NORMS',
    'Run',
    'run_comparison',
    'measure_costs',
    'replace_norm',
    'write_report',
]
