"""Errors from deep inside MMEngine, said as what is wrong with a config."""

import re
import textwrap
import traceback
from contextlib import contextmanager
from urllib.error import URLError

from mmengine.registry import build_from_cfg
from mmengine.runner import BaseLoop, Runner

from mmpsbn.errors import DENIED, FULL, InputError

# Of a loop: what its hooks do before the first iteration.
BEGINNINGS = ('before_train', 'before_test')


@contextmanager
def blamed_on_config():
    """Tell what of a config cannot be built; also a decorator.

    Only the building is judged, of a run all that comes before its loop: an
    error while training or testing passes, and so do those of a network and
    of a full disk.

    Raises:
        InputError: With the modules that were being built, and the error.
    """
    try:
        yield
    except (InputError, URLError):
        raise
    except Exception as error:  # A config may ask for anything.
        steps = list(traceback.walk_tb(error.__traceback__))
        if is_of_disk(error) or _runs(steps):
            raise
        names = [name for name in map(_built, steps) if name]
        frame, line = steps[-1]
        file = re.split(r'[\\/]', frame.f_code.co_filename)[-1]
        raise InputError(
            'the config cannot be used: '
            f'{"in " * bool(names)}{" > ".join(names)}{", " * bool(names)}'
            f'{in_a_sentence(error)} ({file}, line {line}).') from error


def in_a_sentence(error: Exception) -> str:
    """The kind of an error, and the first sentence of what it says."""
    # The text of a KeyError would come in quotes.
    text = error.args[0] if isinstance(error, KeyError) and \
        error.args else error
    text = ' '.join(str(text).split())
    if not text and error.__traceback__:  # A bare assertion.
        text = traceback.extract_tb(error.__traceback__)[-1].line
    text = re.split(r'(?<=[.!?])\s', text)[0].rstrip('.')
    text = textwrap.shorten(text, 300, placeholder=' ...')
    return f'{type(error).__name__}: {text}' if text else type(error).__name__


def is_of_disk(error: Exception) -> bool:
    """Whether a disk is full, or does not let a file be read or written.

    MMEngine copies a config to read it.
    """
    return isinstance(error, OSError) and error.errno in FULL + DENIED


def _runs(steps: list) -> bool:
    """Whether a traceback is of a loop that has begun."""
    frames = [frame for frame, _ in steps]
    return any(frame.f_code.co_name == 'run' and isinstance(
        frame.f_locals.get('self'), BaseLoop) for frame in frames) and not any(
            frame.f_code.co_name == 'call_hook'
            and frame.f_locals.get('fn_name') in BEGINNINGS
            for frame in frames)


def _built(step: tuple) -> str:
    """What a frame of a traceback was building, as the config names it."""
    frame = step[0]
    if frame.f_code is build_from_cfg.__code__:
        cfg = frame.f_locals['cfg']
        kind = cfg.get('type') if isinstance(cfg, dict) else None
        return getattr(kind, '__name__', str(kind or ''))
    name = frame.f_code.co_name
    if name.startswith('build_') and isinstance(
            frame.f_locals.get('self'), Runner):
        return name.removeprefix('build_')
    return ''
