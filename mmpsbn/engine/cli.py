"""What the command lines of the tools share."""

import argparse
import logging
import os
import signal
import sys
from contextlib import contextmanager
from typing import Optional, Sequence, Tuple
from urllib.error import URLError

import torch.distributed as dist
from mmengine.config import DictAction

from mmpsbn.errors import DENIED, FULL, InputError
from .checkpoint import without_code


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that every tool of MMDetection's interface takes."""
    parser.add_argument(
        '--work-dir', help='folder of logs, metrics and checkpoints')
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how several processes were started')
    # Old launchers pass it instead of setting the variable.
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=_set_local_rank,
        help=argparse.SUPPRESS)
    os.environ.setdefault('LOCAL_RANK', '0')


def _set_local_rank(rank: str) -> int:
    os.environ['LOCAL_RANK'] = rank
    return int(rank)


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add the argument that changes settings of the config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings of the config to override, as key=value')


def add_image_arguments(parser: argparse.ArgumentParser, purpose: str,
                        number: int) -> None:
    """Add the arguments that name images to run a model on.

    Args:
        parser (argparse.ArgumentParser): Of the tool.
        purpose (str): What the images are for, as in "images to compare on".
        number (int): How many by default.
    """
    parser.add_argument(
        '--images',
        help=f"folder of images {purpose}; by default the config's training "
        'images')
    parser.add_argument(
        '--number', type=int, default=number, help='how many of them')


def add_shape_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that gives the size of an exported model's input."""
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='of the input, multiples of 32; by default that of the '
        "config's test images")


def shape_of(args: argparse.Namespace) -> Optional[Tuple[int, int]]:
    """Height and width that ``--shape`` gives, None without it.

    Raises:
        InputError: If they are no multiples of 32.
    """
    if args.shape is None:
        return None
    if any(size < 32 or size % 32 for size in args.shape):
        raise InputError(f'--shape {args.shape[0]} {args.shape[1]}: height '
                         'and width must be multiples of 32.')
    return tuple(args.shape)


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """Align the cells of a table, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join('  '.join(
        cell.rjust(width) if index else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(row, widths)))
        for row in rows)


def interrupted_by_signals() -> None:
    """Let a closed terminal and ``kill`` end the program as Ctrl-C does.

    A program that nohup started keeps on ignoring the closed terminal.
    """
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is not signal.SIG_IGN:
            signal.signal(name, signal.default_int_handler)


@contextmanager
def told_to_the_user(interrupted: str = 'the command has not finished'):
    """End the program with the sentence of an InputError, not a traceback.

    What it loads meanwhile can run no code, see
    :func:`~mmpsbn.engine.checkpoint.without_code`. The exit status is 1, and
    after Ctrl-C 130, as a shell has it.

    Args:
        interrupted (str): What to say after Ctrl-C.
    """
    try:
        with without_code():
            yield
        if dist.is_initialized() and dist.get_backend() == 'gloo':
            _end_at_once()
    except InputError as error:
        sys.exit(f'error: {error}')
    except URLError as error:
        sys.exit(f'error: a download failed ({error.reason}); fetch the file '
                 'by other means, and name it in the config.')
    except OSError as error:
        file = f' ({error.filename})' if error.filename else ''
        if error.errno in DENIED:
            sys.exit(f'error: a file cannot be read or written{file}: '
                     f'{error.strerror}. Change its permissions, or name '
                     'another file or folder.')
        if error.errno not in FULL:
            raise
        sys.exit(f'error: nothing more can be written{file}: '
                 f'{error.strerror}. Make room, '
                 'and type the command again.')
    except KeyboardInterrupt:
        print(f'interrupted; {interrupted}.', file=sys.stderr)
        sys.exit(130)


def _end_at_once() -> None:
    # A thread of gloo may still hold tensors, and asks for the GIL to let go
    # of them; while Python ends that aborts the process ("terminate called
    # without an active exception"), and the launcher would call a finished run
    # failed: https://github.com/pytorch/pytorch/issues/190489.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
