"""Errors that the user can correct, and how errors are put into words."""

import errno
import re
import textwrap
import traceback

# A full disk or an exceeded quota, and what the user may not read or write.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


class InputError(ValueError):
    """The user's input cannot be used; the message says what to do."""


class DivergenceError(InputError):
    """Training has diverged, and weights that are not finite were refused."""


def describe_error(error: Exception) -> str:
    """Return the type of an error and the first sentence of its message."""
    # The text of a KeyError would be in quotes.
    quoted = isinstance(error, KeyError) and error.args
    text = ' '.join(str(error.args[0] if quoted else error).split())
    if not text and error.__traceback__:  # An assertion without a message.
        text = traceback.extract_tb(error.__traceback__)[-1].line
    text = re.split(r'(?<=[.!?])\s', text)[0].rstrip('.')
    text = textwrap.shorten(text, 300, placeholder=' ...')
    return f'{type(error).__name__}: {text}' if text else type(error).__name__


def is_disk_error(error: Exception) -> bool:
    """Return whether a disk is full, or a file may not be read or written."""
    return isinstance(error, OSError) and error.errno in FULL + DENIED
