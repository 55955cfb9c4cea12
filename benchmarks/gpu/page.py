"""The results of a run, ``gpu.csv``, and the page made from them."""

import platform
from pathlib import Path
from typing import NamedTuple

import torch

import mmpsbn
from benchmarks.shared.pages import write_sections
from benchmarks.shared.rows import Rows, read_rows, write_rows
from mmpsbn.errors import InputError

from .correctness import LEAST, STEPS, TIMES

FILE = 'gpu.csv'
# The columns of each table. The first are the names of its rows.
NAMES = {
    'Correctness': ['trained with'],
    'Time': ['action', 'precision', 'batch'],
    'Memory': ['norm'],
    'Studies': ['study'],
}
COLUMNS = {
    'Correctness': ['error of BN', 'error of psBN', 'psBN within the limit'],
    'Time': ['rounds', 'BN, ms', 'psBN / BN', 'MimicNorm / BN'],
    'Memory': ['stored, MiB', 'peak, MiB', 'largest batch'],
    'Studies': ['on CIFAR-10'],
}
ABOUT = {
    'Correctness': 'Largest relative error of the parameters and running statistics '
    f'after {STEPS} training steps of a small network, compared with the definition '
    f'in float64 on the CPU. The limit is {TIMES} times the error of BN, plus {LEAST}.',
    'Time': 'Times of a {network} at {size} x {size} pixels in channels_last. The '
    'networks take turns. Ratios are medians over the rounds. Convolutions in float32 '
    'use TF32 where it is the default of torch.',
    'Memory': 'A training step of a {network} in float32 with {batch} images, and the '
    'largest batch that fits, to a sixteenth. "Stored" counts the activations that '
    'autograd stores. The MimicNorm paper (arXiv:2010.09278) reports that it saves 17 '
    "% of BN's total memory with ResNet-50.",
    'Studies': 'The trainings at full size.',
}


class Case(NamedTuple):
    """A row of a table."""

    number: int
    """The number of the measurement, in whose order the rows are."""
    part: str
    name: str
    """The first cells of the row."""


class Value(NamedTuple):
    """Another cell of the row."""

    column: str
    value: str
    """A number, or why there is none."""


class Results:
    """The file of a run, which is written after each measurement.

    Args:
        folder (Path): The folder of the file.
        device (str): The device of the run.
        settings: What the page mentions, as text: the network, size and batch.
    """

    def __init__(self, folder: Path, device: str, **settings: str) -> None:
        self._file = folder / FILE
        self._rows: Rows = {}
        name, software = versions(device)
        self.add('Setup', '', dict(device=name, software=software, **settings))

    def add(self, part: str, name: str, cells: dict[str, str]) -> None:
        """Add a row, print it, and write the file."""
        case = Case(len(self._rows), part, name)
        self._rows[case] = [Value(*cell) for cell in cells.items()]
        print(', '.join([f'{part}: {name}', *cells.values()]), flush=True)
        write_rows(self._file, self._rows, Case, Value)


def versions(device: str) -> tuple[str, str]:
    """Describe the device and all versions."""
    try:
        from torchvision import __version__ as torchvision
    except (ImportError, RuntimeError):
        torchvision = 'none'
    name = f'CPU, {torch.get_num_threads()} threads, so it is no result for a GPU'
    parts = [
        f'mmpsbn {mmpsbn.__version__}',
        f'torch {torch.__version__}',
        f'torchvision {torchvision}',
        f'Python {platform.python_version()}',
    ]
    if device == 'cuda':
        card = torch.cuda.get_device_properties(0)
        name = f'{card.name} ({card.total_memory / 2**30:.0f} GiB)'
        cudnn = torch.backends.cudnn.version()
        parts.append(f'CUDA {torch.version.cuda}, cuDNN {cudnn}')
    return name, ', '.join(parts)


def read_tables(folder: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Read the results in a folder.

    Returns:
        dict: For each part the rows by their names. The row without a name in
        ``Setup`` has the device, and what was measured.

    Raises:
        InputError: If the folder has no results, or damaged ones.
    """
    tables: dict[str, dict[str, dict[str, str]]] = {}
    for case, values in read_rows(folder / FILE, Case, Value).items():
        tables.setdefault(case.part, {})[case.name] = dict(values)
    if 'Setup' not in tables:
        raise InputError(
            f'{folder / FILE} has no results. Measure them with --out {folder}, or '
            'choose another folder.'
        )
    return tables


def write_report(folder: Path) -> Path:
    """Write the page and the figures of the results in a folder.

    Returns:
        Path: The page.

    Raises:
        InputError: If the folder has no results, or damaged ones.
    """
    tables = read_tables(folder)
    setup = tables.pop('Setup')['']
    parts = ['Measured on: {device}, {software}.'.format(**setup)]
    for part, rows in tables.items():
        parts += [f'## {part}', ABOUT[part].format(**setup), format_part(part, rows)]
    try:
        from .figures import draw_memory, draw_times
    except ImportError:
        parts.append('There are no figures, because matplotlib is missing.')
    else:
        if draw_times(tables.get('Time', {}), setup, folder / 'time.png'):
            parts.append('![Time relative to BN](time.png)')
        if draw_memory(tables.get('Memory', {}), setup, folder / 'memory.png'):
            parts.append('![Memory](memory.png)')
    return write_sections(['\n\n'.join(parts) + '\n'], folder)


def format_part(part: str, rows: dict[str, dict[str, str]]) -> str:
    """Format a table. Cells that are missing are dashes."""
    head = list(NAMES[part])
    lines = [name.split(' | ') for name in rows]
    for column in COLUMNS[part]:
        head.append(column)
        for line, own in zip(lines, rows.values()):
            line.append(own.get(column, '-'))
        if part == 'Memory':
            head.append('of BN')
            bn = rows['BN'].get(column, '-')
            for line in lines:
                both = bn.isdecimal() and line[-1].isdecimal()
                line.append(f'{int(line[-1]) / int(bn):.3f}' if both else '-')
    table = [head, ['---'] * len(head), *lines]
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in table)
