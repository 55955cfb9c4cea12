"""The colors and settings that all figures share."""

from collections.abc import Iterator
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
STYLE = {'font.size': 9, 'axes.spines.top': False, 'axes.spines.right': False}


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
