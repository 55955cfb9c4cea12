from mmpsbn.compare.comparison import Comparison
from mmpsbn.compare.costs import TrainingCost, measure_costs
from mmpsbn.compare.placing import NORMALIZATIONS, replace_norm
from mmpsbn.compare.report import write_report
from mmpsbn.compare.runs import Run
from mmpsbn.compare.session import run_comparison

__all__ = [
    'Comparison',
    'NORMALIZATIONS',
    'Run',
    'TrainingCost',
    'measure_costs',
    'replace_norm',
    'run_comparison',
    'write_report',
]
