"""Errors that a person can mend, told as one sentence."""

import sys
from contextlib import contextmanager


class InputError(ValueError):
    """What the user gave cannot be used; the message says what to do."""


@contextmanager
def told_to_the_user():
    """End the program with the sentence of an InputError, not a traceback."""
    try:
        yield
    except InputError as error:
        sys.exit(f'error: {error}')
