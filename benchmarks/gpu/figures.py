"""Figures of time and memory, as PNG files."""

from pathlib import Path

from mmpsbn.analysis.style import COLOR_OF, figure_file

RATIOS = {'psBN': 'psBN / BN', 'MimicNorm': 'MimicNorm / BN'}
MEMORY = {
    'stored, MiB': 'stored activations, MiB',
    'peak, MiB': 'peak memory, MiB',
    'largest batch': 'largest batch, images',
}


def draw_times(rows: dict[str, dict[str, str]], setup: dict, out: Path) -> bool:
    """Draw the times relative to BN over the batch, in a panel for each action.

    Args:
        rows (dict): The rows of the table of times, by their names.
        setup (dict): The network, the size of its images, and the device.
        out (Path): The PNG to write.

    Returns:
        bool: Whether there was anything to draw.
    """
    panels: dict[str, dict[str, dict[str, str]]] = {}
    for name, own in rows.items():
        if own.keys() >= {*RATIOS.values()}:
            action, precision, batch = name.split(' | ')
            panels.setdefault(f'{action}, {precision}', {})[batch] = own
    if not panels:
        return False
    # One row for each precision, as the actions alternate in the table.
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    with figure_file(str(out), 3.3 * columns, 0.7 + 2 * lines) as figure:
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for axis, (title, own) in zip(axes.flat, panels.items()):
            axis.axhline(1, color=COLOR_OF['BN'], label='BN')
            for norm, column in RATIOS.items():
                values = [float(cells[column]) for cells in own.values()]
                axis.plot(list(own), values, 'o-', color=COLOR_OF[norm], label=norm)
            axis.set_title(title)
            axis.set_xlabel('images per batch')
        for axis in axes[:, 0]:
            axis.set_ylabel('time relative to BN')
        figure.suptitle(f'{_network(setup)}, {setup["device"]}')
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc='outside lower center',
            ncols=1 + len(RATIOS),
        )
    return True


def draw_memory(rows: dict[str, dict[str, str]], setup: dict, out: Path) -> bool:
    """Draw the memory of a training step and the largest batch as bars.

    The arguments are those of :func:`draw_times`, with the table of memory and the
    batch of the step.
    """
    panels = {
        label: {
            norm: int(value)
            for norm, own in rows.items()
            if (value := own.get(column, '')).isdecimal()
        }
        for column, label in MEMORY.items()
    }
    panels = {label: own for label, own in panels.items() if own}
    if not panels:
        return False
    with figure_file(str(out), 1.4 + 2.2 * len(panels), 2.2) as figure:
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (label, own) in zip(axes, panels.items()):
            colors = [COLOR_OF[norm] for norm in own]
            bars = axis.barh(list(own), list(own.values()), color=colors)
            axis.bar_label(bars, padding=2, fontsize=8)
            axis.margins(x=0.35)
            axis.set_xlabel(label)
            axis.grid(False, axis='y')
        axes[0].invert_yaxis()
        figure.suptitle(
            f'{_network(setup)}, {setup["batch"]} images in float32, {setup["device"]}'
        )
    return True


def _network(setup: dict[str, str]) -> str:
    name = setup['network'].replace('resnet', 'ResNet-')
    return f'{name}, {setup["size"]} x {setup["size"]}'
