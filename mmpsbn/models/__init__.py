from mmpsbn.models import residual_blocks  # noqa: F401  It fills BRANCH_ENDS.
from mmpsbn.models.efficientnet_lite import (
    EfficientNetLite,
    load_from_efficientnet_lite,
)
from mmpsbn.models.last_bn_heads import (
    LastBNRetinaHead,
    LastBNRetinaSepBNHead,
    LastBNRPNHead,
)

__all__ = [
    'EfficientNetLite',
    'LastBNRPNHead',
    'LastBNRetinaHead',
    'LastBNRetinaSepBNHead',
    'load_from_efficientnet_lite',
]
