"""The measurements of a benchmark of costs, which are rows of a CSV file."""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch

from mmpsbn.errors import InputError

from .rows import read_rows, write_rows


class Costs:
    """A CSV file, to which each measurement is added.

    A measurement that the file has already is replaced.

    Args:
        file (Path): It may not exist yet.
        measured (type): The class of what is measured, a named tuple whose
            fields are the first columns.
        cost (type): The class of the measurements, whose fields are the other
            columns.

    Raises:
        InputError: If its folder cannot be made, if the file has other columns,
            or if a value does not belong into its column.
    """

    def __init__(
        self, file: Path, measured: type[NamedTuple], cost: type[NamedTuple]
    ) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f'the folder {file.parent} cannot be made: {error.strerror}. Choose '
                'another one with --results.'
            ) from error
        self._file, self._types = file, (measured, cost)
        self._rows = read_rows(file, *self._types)

    def add(self, measured: NamedTuple, cost: NamedTuple) -> None:
        """Add a measurement, and write the file."""
        self._rows[measured] = [cost]
        write_rows(self._file, self._rows, *self._types)

    def all(self) -> dict[NamedTuple, NamedTuple]:
        return {measured: own[0] for measured, own in self._rows.items()}


def cost_parser(about: str, rounds: int) -> argparse.ArgumentParser:
    """Make a parser with the options that all benchmarks of costs have.

    Args:
        about (str): The beginning of ``--help``.
        rounds (int): The default of ``--rounds``.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--rounds', type=int, default=rounds, help='how often each is measured'
    )
    parser.add_argument(
        '--results',
        type=Path,
        default=Path(__file__).resolve().parents[1],
        help='folder of the CSV file to which the measurements are added',
    )
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, a GPU by default if there is one."""
    parser.add_argument(
        '--device',
        choices=('cpu', 'cuda'),
        default='cuda' if torch.cuda.is_available() else 'cpu',
    )


def name_of(device: str) -> str:
    """Name a device as in the CSV files."""
    if device == 'cuda':
        return torch.cuda.get_device_name()
    return f'CPU, {torch.get_num_threads()} threads'
