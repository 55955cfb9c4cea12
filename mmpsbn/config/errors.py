"""Errors from deep inside MMEngine, explained by the config that caused them."""

import re
import traceback
from contextlib import contextmanager
from urllib.error import URLError

import torch
from mmengine.registry import build_from_cfg
from mmengine.runner import BaseLoop, Runner

from mmpsbn.errors import InputError, describe_error, is_disk_error


@contextmanager
def explain_config_errors():
    """Say what part of a config cannot be built; also a decorator.

    Errors of a loop that has begun, of a network, of a disk and of a full GPU
    pass through.

    Raises:
        InputError: With the modules that were being built, and the error.
    """
    try:
        yield
    except (InputError, URLError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # A config may ask for anything.
        steps = list(traceback.walk_tb(error.__traceback__))
        frames = [frame for frame, _ in steps]
        if is_disk_error(error) or _is_running(frames):
            raise
        built = ' > '.join(filter(None, map(_built_type, frames)))
        file = re.split(r'[\\/]', frames[-1].f_code.co_filename)[-1]
        raise InputError(
            f'the config cannot be used: {f"in {built}, " if built else ""}'
            f'{describe_error(error)} ({file}, line {steps[-1][1]}). Correct the '
            'config.'
        ) from error


def _is_running(frames: list) -> bool:
    """Return whether an error is from a loop after its first hooks."""
    called = {
        frame.f_locals.get('fn_name')
        for frame in frames
        if frame.f_code.co_name == 'call_hook'
    }
    in_loop = any(
        frame.f_code.co_name == 'run'
        and isinstance(frame.f_locals.get('self'), BaseLoop)
        for frame in frames
    )
    return in_loop and not called & {'before_train', 'before_test'}


def _built_type(frame) -> str:
    """Return what a frame was building, as the config names it."""
    if frame.f_code is build_from_cfg.__code__:
        cfg = frame.f_locals['cfg']
        kind = cfg.get('type') if isinstance(cfg, dict) else None
        return getattr(kind, '__name__', str(kind or ''))
    name = frame.f_code.co_name
    in_runner = isinstance(frame.f_locals.get('self'), Runner)
    return name.removeprefix('build_') if in_runner and name[:6] == 'build_' else ''
