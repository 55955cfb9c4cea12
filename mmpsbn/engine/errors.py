"""Errors that a person can mend, told as one sentence."""

import sys
from contextlib import contextmanager
from urllib.error import URLError


class InputError(ValueError):
    """What the user gave cannot be used; the message says what to do."""


@contextmanager
def told_to_the_user():
    """End the program with the sentence of an InputError, not a traceback.

    The exit status is 1, and after Ctrl-C 130, as a shell has it.
    """
    try:
        yield
    except InputError as error:
        sys.exit(f'error: {error}')
    except URLError as error:
        sys.exit(f'error: a download failed ({error.reason}); fetch the file '
                 'by other means, and name it in the config.')
    except KeyboardInterrupt:
        print('interrupted; tools/train.py goes on from its last checkpoint '
              'with --resume.', file=sys.stderr)
        sys.exit(130)
