from mmpsbn.models import residual_blocks  # noqa: F401  It fills BRANCH_ENDS.
from mmpsbn.models.efficientnet_lite import (
    EfficientNetLite,
    load_from_efficientnet_lite,
)
from mmpsbn.models.last_bn_heads import (
    SCORE_LAYERS,
    LastBNATSSHead,
    LastBNFCOSHead,
    LastBNGFLHead,
    LastBNPAAHead,
    LastBNRetinaHead,
    LastBNRetinaSepBNHead,
    LastBNRPNHead,
    LastBNVFNetHead,
    add_last_bn,
)

__all__ = [
    'EfficientNetLite',
    'LastBNATSSHead',
    'LastBNFCOSHead',
    'LastBNGFLHead',
    'LastBNPAAHead',
    'LastBNRPNHead',
    'LastBNRetinaHead',
    'LastBNRetinaSepBNHead',
    'LastBNVFNetHead',
    'SCORE_LAYERS',
    'add_last_bn',
    'load_from_efficientnet_lite',
]
