"""The options that studies share, and how their commands end."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mmpsbn.errors import InputError


def study_parser(
    name: str,
    about: str,
    folder: Path,
    seeds: int | None = None,
    parallel: str = '--processes',
) -> argparse.ArgumentParser:
    """Make a parser with the options that all studies have.

    Args:
        name (str): The name of the study's package.
        about (str): The beginning of ``--help``.
        folder (Path): The folder with the committed results.
        seeds (int, optional): The default of ``--seeds``.
        parallel (str): The name of the option for runs in parallel.
    """
    parser = argparse.ArgumentParser(
        prog=f'python -m benchmarks.{name}',
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--seeds', type=int, default=seeds, help='how many')
    parser.add_argument(
        parallel,
        type=int,
        default=len(os.sched_getaffinity(0)),
        help='the number of runs in parallel, with one thread each',
    )
    parser.add_argument(
        '--results',
        type=Path,
        default=folder,
        help='folder of the CSV files and the figures',
    )
    return parser


def add_work_dir(parser: argparse.ArgumentParser, name: str, content: str) -> None:
    """Add ``--work-dir``, a folder below work_dirs by default."""
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs') / name,
        help=f'folder of the {content}',
    )


def check_counts(
    parser: argparse.ArgumentParser, args: argparse.Namespace, *names: str
) -> None:
    """End with a message if one of these options is less than 1."""
    for name in names:
        if getattr(args, name) < 1:
            option = name.replace('_', '-')
            parser.error(f'--{option} is {getattr(args, name)}, but must be at least 1')


def check_device(parser: argparse.ArgumentParser, device: str) -> None:
    """End with a message if a device cannot be used."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f'--device {device} cannot be used: {error}')


@contextmanager
def exit_with_message(results: Path) -> Iterator[None]:
    """End the program with a message if the user can correct the error.

    Studies of classifiers need torch only, and
    :func:`mmpsbn.cli.errors.exit_with_message` needs MMDetection.

    Args:
        results (Path): The folder of the CSV files.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        sys.exit(
            f'error: {error.name} is needed and not installed. Install it, and '
            f'repeat the command. The results so far are in {results}.'
        )
    except (ImportError, InputError) as error:
        sys.exit(f'error: {error}')
    except torch.cuda.OutOfMemoryError:
        sys.exit(
            'error: the GPU does not have enough memory for this many trainings in '
            'parallel. Lower --processes; the command resumes.'
        )
    except OSError as error:
        sys.exit(
            f'error: {error.filename or "a file"} cannot be read or written: '
            f'{error.strerror}. Correct this, and repeat the command, which resumes.'
        )
    except KeyboardInterrupt:
        print('Interrupted. The same command resumes.', file=sys.stderr)
        sys.exit(130)
