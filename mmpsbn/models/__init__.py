from .efficientnet_lite import EfficientNetLite, load_from_efficientnet_lite
from .last_bn_heads import LastBNRetinaHead, LastBNRPNHead

__all__ = [
    'EfficientNetLite', 'LastBNRPNHead', 'LastBNRetinaHead',
    'load_from_efficientnet_lite'
]
