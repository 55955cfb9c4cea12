from .conversion import (Proof, convert_to_mimicnorm, convert_to_psbn,
                         convert_to_stock)

__all__ = [
    'Proof', 'convert_to_mimicnorm', 'convert_to_psbn', 'convert_to_stock'
]
