from .post_shifted_bn import PSBatchNorm1d, PSBatchNorm2d, PSBatchNorm3d
from .sync_post_shifted_bn import PSSyncBatchNorm

__all__ = [
    'PSBatchNorm1d', 'PSBatchNorm2d', 'PSBatchNorm3d', 'PSSyncBatchNorm'
]
