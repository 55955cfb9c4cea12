from .last_bn_heads import LastBNRetinaHead, LastBNRPNHead

__all__ = ['LastBNRPNHead', 'LastBNRetinaHead']
