"""The page of a run, ``gpu.md``, and its figures."""

import platform
from collections.abc import Sequence
from pathlib import Path

import torch

import mmpsbn
from mmpsbn.files import write_atomically

HEADS = {
    'Correctness': [
        'trained with',
        'error of BN',
        'error of psBN',
        'psBN within the limit',
    ],
    'Time': [
        'action',
        'precision',
        'batch',
        'rounds',
        'BN, ms',
        'psBN / BN',
        'MimicNorm / BN',
    ],
    'Memory': [
        'norm',
        'stored, MiB',
        'of BN',
        'peak, MiB',
        'of BN',
        'largest batch',
        'of BN',
    ],
}
ABOUT = {
    'Correctness': 'Largest relative error of the parameters and running statistics '
    'after {steps} training steps of a small network, compared with the definition '
    'in float64 on the CPU. The limit is {times} times the error of BN, plus {least}.',
    'Time': 'Times of a {network} at {size} x {size} pixels in channels_last. The '
    'networks take turns. Ratios are medians over the rounds. Convolutions in float32 '
    'use TF32 where it is the default of torch.',
    'Memory': 'A training step of a {network} in float32 with {batch} images, and the '
    'largest batch that fits, to a sixteenth. "Stored" counts the activations that '
    'autograd stores. The MimicNorm paper (arXiv:2010.09278) reports that it saves 17 '
    "to 20 % of BN's total memory.",
}


def versions(device: str) -> str:
    """Describe the device and all versions in one sentence."""
    try:
        from torchvision import __version__ as torchvision
    except (ImportError, RuntimeError):
        torchvision = 'none'
    parts = [
        f'CPU, {torch.get_num_threads()} threads, so it is no result for a GPU',
        f'mmpsbn {mmpsbn.__version__}',
        f'torch {torch.__version__}',
        f'torchvision {torchvision}',
        f'Python {platform.python_version()}',
    ]
    if device == 'cuda':
        card = torch.cuda.get_device_properties(0)
        parts[0] = f'{card.name} ({card.total_memory / 2**30:.0f} GiB)'
        cudnn = torch.backends.cudnn.version()
        parts.append(f'CUDA {torch.version.cuda}, cuDNN {cudnn}')
    return f'Measured on: {", ".join(parts)}.'


def is_number(cell: str) -> bool:
    """Return whether a cell has a number, and not the reason for its absence."""
    return cell.replace('.', '', 1).isdigit()


class Page:
    """The tables of a run, written again after each part.

    Args:
        out (Path): The folder.
        device (str): The device of the run.
        values: What the descriptions of the tables mention.
    """

    def __init__(self, out: Path, device: str, **values) -> None:
        self.out, self.values = out, values
        self.top = versions(device)
        self.rows: dict[str, list[Sequence[str]]] = {}
        self.end: list[str] = []

    def add(self, part: str, row: Sequence[str]) -> None:
        """Add a row and print it. Cells that are missing are dashes."""
        row = [*row, *['-'] * (len(HEADS[part]) - len(row))]
        self.rows.setdefault(part, []).append(row)
        print(f'{part}: {", ".join(row)}', flush=True)

    def write(self) -> None:
        """Write gpu.md."""
        parts = ['# psBN and MimicNorm on a GPU', self.top]
        for part, rows in self.rows.items():
            head = HEADS[part]
            table = [head, ['---'] * len(head), *rows]
            parts += [f'## {part}', ABOUT[part].format(**self.values)]
            parts.append('\n'.join(f'| {" | ".join(cells)} |' for cells in table))
        text = '\n\n'.join([*parts, *self.end])
        write_atomically(self.out / 'gpu.md', f'{text}\n'.encode())

    def draw(self) -> None:
        """Draw the tables of time and memory, if matplotlib is installed."""
        try:
            from mmpsbn.analysis.style import COLOR_OF, figure_file
        except ImportError:
            self.end.append('There are no figures, because matplotlib is missing.')
            return
        rows = [row for row in self.rows.get('Time', []) if is_number(row[-1])]
        groups = list(dict.fromkeys(tuple(row[:2]) for row in rows))
        if groups:
            # One row for each precision, as the actions alternate in the table.
            columns = min(2, len(groups))
            lines = -(-len(groups) // columns)
            with figure_file(
                str(self.out / 'time.png'), 3.5 * columns, 2.2 * lines
            ) as figure:
                axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
                for axis, group in zip(axes.flat, groups):
                    own = [row for row in rows if tuple(row[:2]) == group]
                    for column, norm in ((5, 'psBN'), (6, 'MimicNorm')):
                        axis.plot(
                            [row[2] for row in own],
                            [float(row[column]) for row in own],
                            'o-',
                            color=COLOR_OF[norm],
                            label=norm,
                        )
                    axis.axhline(1, color=COLOR_OF['BN'], lw=0.8)
                    axis.set(xlabel='images per batch', title=', '.join(group))
                for axis in axes[:, 0]:
                    axis.set_ylabel('time relative to BN')
                axes[0, 0].legend(frameon=False)
            self.end.append('![Time relative to BN](time.png)')
        rows = self.rows.get('Memory', [])
        measured = {
            column: {
                row[0]: float(row[column]) for row in rows if is_number(row[column])
            }
            for column in (1, 3, 5)
        }
        measured = {column: values for column, values in measured.items() if values}
        if measured:
            width = 3 * len(measured)
            with figure_file(str(self.out / 'memory.png'), width, 2.2) as figure:
                axes = figure.subplots(1, len(measured), sharey=True, squeeze=False)[0]
                for axis, (column, values) in zip(axes, measured.items()):
                    for norm, value in values.items():
                        axis.barh(norm, value, color=COLOR_OF.get(norm, '#999999'))
                    axis.set_xlabel(HEADS['Memory'][column])
                axes[0].invert_yaxis()
            self.end.append('![Memory](memory.png)')
