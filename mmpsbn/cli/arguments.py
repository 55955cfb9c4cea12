"""Command-line arguments that several tools have."""

import argparse
import os
import os.path as osp

from mmengine.config import DictAction

from mmpsbn.errors import InputError


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that every tool of MMDetection's interface takes."""
    parser.add_argument('--work-dir', help='folder of logs, metrics and checkpoints')
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how several processes were started',
    )
    # Old launchers pass it instead of setting the variable.
    parser.add_argument(
        '--local_rank', '--local-rank', type=_set_local_rank, help=argparse.SUPPRESS
    )
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
        help='settings of the config to override, as key=value',
    )


def deployment_parser(
    description: str, out: str, purpose: str, number: int
) -> argparse.ArgumentParser:
    """Make the parser of a tool that turns a trained model into files.

    Args:
        description (str): The description of the tool.
        out (str): What ``--out`` names.
        purpose (str): What the images are for, as in "images to compare on".
        number (int): How many images are used by default.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='the config of the trained model')
    parser.add_argument('checkpoint', help='the trained model')
    parser.add_argument('--out', required=True, help=out)
    parser.add_argument('--force', action='store_true', help='replace files that exist')
    add_image_arguments(parser, purpose, number)
    add_cfg_options(parser)
    return parser


def add_image_arguments(
    parser: argparse.ArgumentParser, purpose: str, number: int
) -> None:
    """Add the arguments that name images, see :func:`deployment_parser`."""
    parser.add_argument(
        '--images',
        help=f"folder of images {purpose}; by default the config's training images",
    )
    parser.add_argument('--number', type=int, default=number, help='number of images')


def add_shape_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that gives the size of an exported model's input."""
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='height and width of the input, multiples of 32; by default '
        "those of the config's test images",
    )


def check_shape(args: argparse.Namespace) -> tuple[int, int] | None:
    """Return the height and width of ``--shape``, None without it.

    Raises:
        InputError: If they are not multiples of 32.
    """
    if args.shape is None:
        return None
    if any(size < 32 or size % 32 for size in args.shape):
        height, width = (max(32, size // 32 * 32) for size in args.shape)
        raise InputError(
            f'--shape {args.shape[0]} {args.shape[1]} is not supported: height and '
            f'width must be multiples of 32. Try --shape {height} {width}.'
        )
    return tuple(args.shape)


def check_out(args: argparse.Namespace, ending: str, *others: str) -> None:
    """Check the file that ``--out`` names.

    Args:
        args (argparse.Namespace): With ``out`` and ``force``.
        ending (str): The ending that the file must have.
        others (str): Files that are written next to it.

    Raises:
        InputError: If it has another ending, or if a file exists.
    """
    if not args.out.endswith(ending):
        raise InputError(
            f'--out {args.out} is not supported: the file name must end in {ending}. '
            f'Try --out model{ending}.'
        )
    check_replaced(args, args.out, *others)


def check_replaced(args: argparse.Namespace, *files: str) -> None:
    """Raise an InputError if a file exists, unless ``--force`` is given."""
    for file in files:
        if osp.exists(file) and not args.force:
            raise InputError(
                f'{file} already exists and was not replaced. Add --force, or choose '
                'another --out.'
            )
