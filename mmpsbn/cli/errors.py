"""How the tools end: with a message instead of a traceback."""

import logging
import os
import signal
import sys
import traceback
from contextlib import contextmanager
from urllib.error import URLError

import torch
import torch.distributed as dist
from mmengine.logging import MMLogger

from mmpsbn.checkpoints.reading import safe_loading
from mmpsbn.errors import DENIED, FULL, InputError

#: The environment variable that shows the traceback of an error.
DEBUG = 'MMPSBN_DEBUG'


def interrupt_on_signals() -> None:
    """Let a closed terminal and ``kill`` end the program as Ctrl-C does.

    A program that nohup started keeps on ignoring the closed terminal.
    """
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is not signal.SIG_IGN:
            signal.signal(name, signal.default_int_handler)


@contextmanager
def exit_with_message(interrupted: str = 'the command has not finished'):
    """End the program with a message if the user can correct the error.

    The exit status is 1, and 130 after Ctrl-C, as in a shell. The traceback
    goes to the log file of a training, and to the screen if the environment
    variable MMPSBN_DEBUG is set. Checkpoints that are loaded meanwhile cannot
    run code, see :func:`~mmpsbn.checkpoints.reading.safe_loading`.

    Args:
        interrupted (str): What to say after Ctrl-C.
    """
    try:
        with safe_loading():
            yield
        if dist.is_initialized() and dist.get_backend() == 'gloo':
            _end_at_once()
    except KeyboardInterrupt:
        print(f'interrupted; {interrupted}.', file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = _message(error)
        _log_traceback()
        if message is None:
            raise
        if os.environ.get(DEBUG):
            traceback.print_exc()
        sys.exit(f'error: {message}')


def _message(error: Exception):
    """Return what to tell the user; None if an error is unexpected."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, URLError):
        return (
            f'a download failed ({error.reason}); fetch the file by other '
            'means, and name it in the config.'
        )
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return (
            f'{str(error).partition(". GPU")[0]}. End other programs on the GPU, or '
            'lower batch_size of the data loader. In training, --amp and '
            'with_cp=True in the backbone also save memory.'
        )
    number = getattr(error, 'errno', None) if isinstance(error, OSError) else None
    file = f' ({error.filename})' if getattr(error, 'filename', None) else ''
    if number in DENIED:
        return (
            f'a file cannot be read or written{file}: {error.strerror}. '
            'Change its permissions, or name another file or folder.'
        )
    if number in FULL:
        return (
            f'nothing more can be written{file}: {error.strerror}. Make '
            'room, and type the command again.'
        )
    return None


def _log_traceback() -> None:
    """Write the traceback to the log file of a Runner, if there is one."""
    record = logging.LogRecord(
        'mmpsbn', logging.ERROR, __file__, 0, 'The command failed:', (), sys.exc_info()
    )
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.handle(record)


def _end_at_once() -> None:
    # A thread of gloo may still hold tensors and ask for the GIL while Python
    # ends, which aborts the process ("terminate called without an active
    # exception"). The launcher would call a finished run failed:
    # https://github.com/pytorch/pytorch/issues/190489.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
