"""Start a Python that ends with the process that started it.

Run this file as a script, with the arguments of the new Python. Linux kills
that Python as soon as its parent has ended for any reason. The file does not
import this package, because it runs before every process of a training.
"""

import ctypes
import os
import signal
import sys

#: The environment variable with the process id of the parent.
PARENT = 'MMPSBN_PARENT'
PR_SET_PDEATHSIG = 1  # Of Linux's prctl.h.


def main() -> None:
    """Replace this process by the command, which ends when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != int(os.environ[PARENT]):
        sys.exit('the process that started this one has already ended.')
    os.environ[PARENT] = str(os.getpid())
    # The background jobs of a shell script ignore Ctrl-C, and so do their
    # children. A comparison ends its runs by the same signal.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


if __name__ == '__main__':
    main()
