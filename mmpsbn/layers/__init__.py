"""The layers of both methods. They need only torch."""

from mmpsbn.layers.conversion import convert_batchnorm, revert_batchnorm
from mmpsbn.layers.last_bn import LastBNConv2d, LastBNLinear
from mmpsbn.layers.mimic_norm import MimicConv, MimicNorm
from mmpsbn.layers.mimic_wiring import BRANCH_ENDS, NORM_TYPES, BranchEnd
from mmpsbn.layers.post_shifted_bn import PSBatchNorm1d, PSBatchNorm2d, PSBatchNorm3d
from mmpsbn.layers.sync_post_shifted_bn import PSSyncBatchNorm

__all__ = [
    'BRANCH_ENDS',
    'BranchEnd',
    'LastBNConv2d',
    'LastBNLinear',
    'MimicConv',
    'MimicNorm',
    'NORM_TYPES',
    'PSBatchNorm1d',
    'PSBatchNorm2d',
    'PSBatchNorm3d',
    'PSSyncBatchNorm',
    'convert_batchnorm',
    'revert_batchnorm',
]
