from .efficientnet_lite import EfficientNetLite, load_from_efficientnet_lite
from .last_bn_heads import (LastBNRetinaHead, LastBNRetinaSepBNHead,
                            LastBNRPNHead)

__all__ = [
    'EfficientNetLite', 'LastBNRPNHead', 'LastBNRetinaHead',
    'LastBNRetinaSepBNHead', 'load_from_efficientnet_lite'
]
