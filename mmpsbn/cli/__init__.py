"""What the command lines in ``tools/`` share.

The tools import it before MMDetection, so a missing package ends in a message.
"""

import sys

from mmpsbn.stack import check_detection

try:
    check_detection()
except ImportError as error:
    sys.exit(f'error: {error}')

__all__: list[str] = []
