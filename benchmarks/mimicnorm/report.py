"""Tables of what was found, beside their figures."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.shared import settings as shared
from benchmarks.shared.settings import make_rows, panel_of, varied
from benchmarks.shared.tables import format_mean_and_spread, heading, value_of
from mmpsbn.compare.tables import format_table
from mmpsbn.files import write_atomically

from .correlation import MEASURES
from .experiments import EXPERIMENTS, Settings
from .figures import (
    MOMENTS,
    by_layer,
    draw_accuracies,
    draw_correlations,
    draw_heat_maps,
)

# A training has learned something above this multiple of a guess's accuracy.
LEARNED = 2


class Row(shared.Row):
    """With what became of the seeds."""

    @property
    def at_chance(self) -> int:
        """Seeds that learned nothing, and have not diverged."""
        return sum(
            not result['diverged'] and result['accuracy'] < LEARNED * result['chance']
            for result in self.results
        )

    @property
    def trained(self) -> int:
        return len(self.results) - self.diverged - self.at_chance


def write_report(
    jobs: dict[str, list[Settings]], results: dict[str, dict], out: Path, versions: str
) -> Path:
    """Write ``report.md`` and figures.

    Args:
        jobs (dict): The trainings of each experiment.
        results (dict): By the key of the settings.
        out (Path): The folder.
        versions (str): What it was run with.

    Returns:
        Path: Of the report.
    """
    every = list(dict.fromkeys(job for own in jobs.values() for job in own))
    parts = [heading('MimicNorm', every, results, versions)]
    for name, own in jobs.items():
        experiment, rows = EXPERIMENTS[name], make_rows(own, results, Row)
        figure = str(out / f'{name}.png')
        parts.append(f'## {experiment.title}')
        if experiment.x == 'layer':
            parts += correlation_tables(rows)
            draw_correlations(rows, figure)
        else:
            draw = draw_accuracies
            if experiment.panels:
                parts.append(summary(rows, experiment.x, experiment.panels))
                draw = draw_heat_maps
            parts.append(table(rows))
            draw(rows, experiment.x, experiment.panels, figure)
        parts.append(f'![{experiment.title}]({name}.png)')
    text = '\n\n'.join(parts) + '\n'
    write_atomically(out / 'report.md', text.encode())
    return out / 'report.md'


def summary(rows: Sequence[Row], x: str, panels: Sequence[str]) -> str:
    """How many seeds trained at each value of ``x``, and the best of them."""
    values = sorted({getattr(row.settings, x) for row in rows})
    lines: dict[tuple, list[Row]] = {}
    for row in rows:
        key = (*panel_of(row.settings, panels), row.settings.norm)
        lines.setdefault(key, []).append(row)
    cells = []
    for key, own in lines.items():
        best = max(own, key=lambda row: statistics.mean(row.accuracies))
        trained = {getattr(row.settings, x): row.trained for row in own}
        cells.append(
            [
                *map(value_of, key),
                *(str(trained[value]) for value in values),
                *format_mean_and_spread(best.accuracies, 2),
                value_of(getattr(best.settings, x)),
            ]
        )
    return format_table(
        [
            *panels,
            'norm',
            *(f'trained, {x} {value:g}' for value in values),
            'best, %',
            'spread',
            f'at {x}',
        ],
        cells,
    )


def table(rows: Sequence[Row]) -> str:
    """Accuracy and what became of the seeds of every variant."""
    told = varied(rows, ('seed', 'norm'))
    return format_table(
        [*told, 'norm', 'accuracy, %', 'spread', 'diverged', 'at chance'],
        [
            [
                *(value_of(getattr(row.settings, name)) for name in told),
                row.settings.norm,
                *format_mean_and_spread(row.accuracies, 2),
                str(row.diverged),
                str(row.at_chance),
            ]
            for row in rows
        ],
    )


def correlation_tables(rows: Sequence[Row]) -> list[str]:
    """For every measure its means over the seeds, layer by layer."""
    first, parts = rows[0].settings, []
    parts.append(f'{first.network} of depth {first.depth}, lr {first.lr:g}:')
    for measure, label in MEASURES.items():
        columns = [by_layer(row, moment, measure) for moment in MOMENTS for row in rows]
        head = [
            'ReLU',
            *(
                f'{row.settings.norm}, {words}'
                for words in MOMENTS.values()
                for row in rows
            ),
        ]
        layers = max(map(len, columns))
        lines = [
            [
                str(layer + 1),
                *(
                    format_mean_and_spread(column[layer] if column else [], 3)[0]
                    for column in columns
                ),
            ]
            for layer in range(layers)
        ]
        parts += [f'{label[0].upper()}{label[1:]}:', format_table(head, lines)]
    return parts
