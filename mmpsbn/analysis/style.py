"""The colors and settings that all figures share."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.figure import Figure

# The colors of Okabe and Ito, which color-blind readers can distinguish.
COLORS = (
    '#0072B2',
    '#E69F00',
    '#009E73',
    '#CC79A7',
    '#56B4E9',
    '#D55E00',
    '#999999',
    '#000000',
)
# Those of Paul Tol's muted scheme for the methods that have fewer figures.
# A method has the same color in every figure.
COLOR_OF = {
    'BN': COLORS[0],
    'psBN': COLORS[5],
    'GN': COLORS[2],
    'MimicNorm': COLORS[3],
    'FrozenBN': COLORS[4],
    'BN+LastBN': COLORS[1],
    'none': COLORS[6],
    'from scratch': COLORS[7],
    'restart': COLORS[7],
    'SyncBN': '#332288',
    'psSyncBN': '#DDCC77',
    'MimicBody': '#AA4499',
    'weight mean': '#117733',
    'MimicNorm, as published': '#44AA99',
    'BN+ReDo': '#999933',
    'BN+S&P': '#882255',
    'norm_eval': '#CC6677',
}
STYLE = {
    'font.size': 9,
    'axes.titlesize': 9,
    'figure.titlesize': 9,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.linewidth': 0.4,
    'legend.frameon': False,
}


def assign_colors(names: Iterable[str]) -> dict[str, str]:
    """Assign a color to each name; those of ``COLOR_OF`` have their own."""
    names = list(dict.fromkeys(names))
    taken = {COLOR_OF.get(name) for name in names}
    free = [color for color in COLORS if color not in taken] or list(COLORS)
    others = [name for name in names if name not in COLOR_OF]
    return {
        name: COLOR_OF.get(name) or free[others.index(name) % len(free)]
        for name in names
    }


@contextmanager
def figure_file(out: str, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure in the shared style, and write it at the end.

    Args:
        out (str): The PNG file.
        width (float): The width in inches.
        height (float): The height in inches.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout='constrained')
        yield figure
        figure.savefig(out, dpi=150)
