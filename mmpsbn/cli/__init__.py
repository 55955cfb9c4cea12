"""What the command lines in ``tools/`` share.

The tools import it before MMDetection, so a missing package ends in a message.
"""

from mmpsbn.stack import check_detection

check_detection()

__all__: list[str] = []
