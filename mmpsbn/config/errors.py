"""Errors from deep inside MMEngine, said as what is wrong with a config."""

import re
import traceback
from contextlib import contextmanager
from urllib.error import URLError

from mmengine.registry import build_from_cfg
from mmengine.runner import BaseLoop, Runner

from mmpsbn.errors import InputError, describe_error, is_disk_error

# Of a loop: what its hooks do before the first iteration.
BEGINNINGS = ('before_train', 'before_test')


@contextmanager
def explain_config_errors():
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
        if is_disk_error(error) or _runs(steps):
            raise
        names = [name for name in map(_built, steps) if name]
        frame, line = steps[-1]
        file = re.split(r'[\\/]', frame.f_code.co_filename)[-1]
        raise InputError(
            'the config cannot be used: '
            f'{"in " * bool(names)}{" > ".join(names)}{", " * bool(names)}'
            f'{describe_error(error)} ({file}, line {line}).'
        ) from error


def _runs(steps: list) -> bool:
    """Whether a traceback is of a loop that has begun."""
    frames = [frame for frame, _ in steps]
    return any(
        frame.f_code.co_name == 'run'
        and isinstance(frame.f_locals.get('self'), BaseLoop)
        for frame in frames
    ) and not any(
        frame.f_code.co_name == 'call_hook'
        and frame.f_locals.get('fn_name') in BEGINNINGS
        for frame in frames
    )


def _built(step: tuple) -> str:
    """What a frame of a traceback was building, as the config names it."""
    frame = step[0]
    if frame.f_code is build_from_cfg.__code__:
        cfg = frame.f_locals['cfg']
        kind = cfg.get('type') if isinstance(cfg, dict) else None
        return getattr(kind, '__name__', str(kind or ''))
    name = frame.f_code.co_name
    if name.startswith('build_') and isinstance(frame.f_locals.get('self'), Runner):
        return name.removeprefix('build_')
    return ''
