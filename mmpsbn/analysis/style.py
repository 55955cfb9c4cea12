"""The colors and settings that all figures share."""

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
