"""Dead channels of one model across successive trainings (rounds)."""

import csv
from collections.abc import Sequence
from typing import NamedTuple

from mmpsbn.analysis.report import Layer, format_count

# Channels are judged by parameters or on images. JUDGES has the attribute of
# Layer with the result.
PARAMETERS, IMAGES = 'parameters', 'images'
JUDGES = {PARAMETERS: 'rarely_positive', IMAGES: 'dead'}


class Change(NamedTuple):
    """The dead channels after a round, compared with the round before it."""

    channels: int
    """Channels that a ReLU follows without a sum in between."""
    dead: int
    newly_dead: int | None
    """Channels that are dead and were not, in the layers that were judged in
    both rounds. It is None for the first round."""
    recovered: int | None
    """Channels that were dead and are not, in the same layers. It is None for
    the first round."""


def changes(rounds: Sequence[Sequence[Layer]], judge: str) -> list[Change]:
    """Compare each round with the one before it.

    Args:
        rounds (list[list[Layer]]): The layers of the checkpoint of each
            round.
        judge (str): ``PARAMETERS`` or ``IMAGES``.

    Returns:
        list[Change]: The dead channels of each round.
    """
    found: list[Change] = []
    before: dict[str, set] = {}
    for layers in rounds:
        own = [
            layer
            for layer in layers
            if layer.judged and not layer.after_sum and (judge == IMAGES or layer.gamma)
        ]
        dead = {layer.name: set(getattr(layer, JUDGES[judge])) for layer in own}
        pairs = [(before[name], dead[name]) for name in dead if name in before]
        found.append(
            Change(
                sum(layer.channels for layer in own),
                sum(map(len, dead.values())),
                sum(len(now - then) for then, now in pairs) if found else None,
                sum(len(then - now) for then, now in pairs) if found else None,
            )
        )
        before = dead
    return found


def rounds_table(names: Sequence[str], by: dict[str, list[Change]]) -> list[list[str]]:
    """Return a table with a row for each round.

    Args:
        names (list[str]): The names of the checkpoints.
        by (dict[str, list[Change]]): For each judge, the result of
            :func:`changes`.

    Returns:
        list[list[str]]: The rows, of which the first is the header.
    """
    rows = [
        [
            'round',
            'channels',
            *(
                title
                for judge in by
                for title in (f'dead by {judge}', 'newly dead', 'recovered')
            ),
        ]
    ]
    for index, name in enumerate(names):
        row = [
            f'{index + 1} {name}',
            str(max(judged[index].channels for judged in by.values())),
        ]
        for judged in by.values():
            channels, dead, newly, recovered = judged[index]
            row += [
                format_count(dead, channels),
                *(
                    '-' if number is None else str(number)
                    for number in (newly, recovered)
                ),
            ]
        rows.append(row)
    return rows


def write_rounds(names: Sequence[str], by: dict[str, list[Change]], out: str) -> None:
    """Write a CSV file with one row for each round and judge.

    Args:
        names (list[str]): The names of the checkpoints.
        by (dict[str, list[Change]]): For each judge, the result of
            :func:`changes`.
        out (str): The CSV file.
    """
    with open(out, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['round', 'checkpoint', 'judged_by', *Change._fields])
        for index, name in enumerate(names):
            for judge, judged in by.items():
                writer.writerow([index + 1, name, judge, *judged[index]])
