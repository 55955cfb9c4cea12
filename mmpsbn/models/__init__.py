from .last_bn_heads import (LastBNRetinaHead, LastBNRetinaSepBNHead,
                            LastBNRPNHead)

__all__ = ['LastBNRPNHead', 'LastBNRetinaHead', 'LastBNRetinaSepBNHead']
