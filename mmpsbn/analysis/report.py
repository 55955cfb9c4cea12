"""Numbers and tables of the collapsed channels in checkpoints."""

import csv
import json
import math
import os.path as osp
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from mmpsbn.analysis.collapse import (
    LEAST_GAMMA,
    LEAST_PROBABILITY,
    Outputs,
    channels_of,
    gamma_and_shift,
    positive_probability,
    stage_of,
)


class Layer(NamedTuple):
    """A norm layer in a checkpoint, judged by its parameters and on images."""

    name: str
    channels: int
    dead: list[int]
    """Channels that are 0 after the ReLU on every image; empty if no ReLU
    follows."""
    judged: bool
    """Whether a ReLU follows."""
    after_sum: bool
    """Whether a residual sum is between the layer and the ReLU."""
    rarely_positive: list[int]
    """Channels with P(gamma * x_hat + shift > 0) below LEAST_PROBABILITY."""
    small_gamma: list[int]
    """Channels with abs(gamma) below LEAST_GAMMA."""
    gamma: list[float]
    shift: list[float]


def describe_layer(name: str, norm: nn.Module, seen: Outputs | None) -> Layer:
    """Judge a norm layer by its parameters and by what was seen of it.

    Args:
        name (str): The name of the layer.
        norm (nn.Module): The norm layer.
        seen (Outputs, optional): Its outputs, if a ReLU follows.
    """
    gamma, shift = gamma_and_shift(norm)
    probability = positive_probability(norm)
    return Layer(
        name,
        channels_of(norm),
        dead=_where(seen.dead) if seen else [],
        judged=seen is not None,
        after_sum=seen is not None and seen.after_sum,
        rarely_positive=(
            [] if probability is None else _where(probability < LEAST_PROBABILITY)
        ),
        small_gamma=_where(gamma.abs() < LEAST_GAMMA),
        gamma=gamma.tolist(),
        shift=shift.tolist(),
    )


def describe_layers(
    layers: dict[str, nn.Module], outputs: dict[str, Outputs]
) -> list[Layer]:
    """Judge norm layers as :func:`describe_layer` does, by their names."""
    return [
        describe_layer(name, layer, outputs.get(name)) for name, layer in layers.items()
    ]


def _where(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def table(layers: Sequence[Layer], images: int = 1) -> list[list[str]]:
    """Return a table with a row for each stage and one for all layers.

    Shares are relative to the channels that can be judged. For ``dead`` and
    ``dead after sum``, these are the channels of layers that a ReLU follows
    without or with a sum in between. For P(y > 0), they are the channels of
    the layers of ``dead`` with weight and bias. For gamma, they are the
    channels of all layers with weight and bias.

    Args:
        layers (list[Layer]): The layers of a checkpoint.
        images (int): The number of images. If it is 0, the table has no
            columns that depend on images. Defaults to 1.

    Returns:
        list[list[str]]: The rows, of which the first is the header.
    """
    stages: dict[str, list[Layer]] = {}
    for layer in layers:
        stages.setdefault(stage_of(layer.name), []).append(layer)
    rows = [
        [
            'stage',
            'layers',
            'channels',
            'dead',
            'dead after sum',
            f'P(y > 0) < {LEAST_PROBABILITY:.0e}',
            f'|gamma| < {LEAST_GAMMA:.0e}',
        ]
    ]
    for stage, own in [*stages.items(), ('all', list(layers))]:
        direct = [x for x in own if x.judged and not x.after_sum]
        summed = [x for x in own if x.judged and x.after_sum]
        known = [x for x in own if x.gamma]
        rows.append(
            [
                stage,
                str(len(own)),
                str(sum(x.channels for x in own)),
                share(direct, 'dead'),
                share(summed, 'dead'),
                share([x for x in known if x in direct], 'rarely_positive'),
                share(known, 'small_gamma'),
            ]
        )
    return rows if images else [row[:3] + row[5:] for row in rows]


def share(layers: Sequence[Layer], what: str) -> str:
    """Format the number and the share of some channels of layers.

    Args:
        layers (list[Layer]): The layers.
        what (str): The attribute of a layer that lists the channels.

    Returns:
        str: See :func:`format_count`.
    """
    found = sum(len(getattr(layer, what)) for layer in layers)
    return format_count(found, sum(layer.channels for layer in layers))


def format_count(found: int, channels: int) -> str:
    """Format a number of channels: ``3 (4.7%)``, or ``-`` without channels."""
    return f'{found} ({found / channels:.1%})' if channels else '-'


def write(results: dict[str, list[Layer]], images: int, out: str) -> None:
    """Write ``collapse.csv`` and ``collapse.json``.

    The CSV file has a row for each layer with the numbers of channels, and
    the JSON file has all attributes of the layers.

    Args:
        results (dict[str, list[Layer]]): The layers of each checkpoint.
        images (int): The number of images on which channels were judged.
        out (str): The folder of the files.
    """
    rows = [
        dict(
            checkpoint=checkpoint,
            layer=layer.name,
            channels=layer.channels,
            judged=int(layer.judged),
            after_sum=int(layer.after_sum),
            dead=len(layer.dead) if images else '',
            rarely_positive=len(layer.rarely_positive),
            small_gamma=len(layer.small_gamma),
        )
        for checkpoint, layers in results.items()
        for layer in layers
    ]
    with open(osp.join(out, 'collapse.csv'), 'w', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    content = dict(
        images=images,
        least_probability=LEAST_PROBABILITY,
        least_gamma=LEAST_GAMMA,
        checkpoints={
            checkpoint: [layer._asdict() for layer in layers]
            for checkpoint, layers in results.items()
        },
    )
    with open(osp.join(out, 'collapse.json'), 'w') as file:
        json.dump(content, file)


def dead_shares(layers: Sequence[Layer]) -> list[float]:
    """Return the share of dead channels in each layer.

    Args:
        layers (list[Layer]): The layers.

    Returns:
        list[float]: The shares, NaN for layers that no ReLU follows.
    """
    return [
        len(layer.dead) / layer.channels if layer.judged else math.nan
        for layer in layers
    ]


def align_columns(rows: Sequence[Sequence[str]]) -> str:
    """Return a table as text with aligned columns.

    The first column is aligned to the left, the others to the right.

    Args:
        rows (list[list[str]]): The cells of each row.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join(
        '  '.join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )
