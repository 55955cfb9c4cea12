"""Tables and figures, from the CSV files alone."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.shared import settings as shared
from benchmarks.shared.data import CLASSES
from benchmarks.shared.rows import Rows
from benchmarks.shared.settings import make_rows, panel_of
from benchmarks.shared.tables import TITLES, format_mean, heading, value_of
from mmpsbn.statistics.tables import format_table

from .correlation import MEASURES
from .experiments import STUDY
from .figures import MOMENTS, draw_correlations, draw_heat_maps

# A training has learned something above this multiple of a guess's accuracy.
LEARNED = 2


class Row(shared.Row):
    """A variant with the number of seeds that trained."""

    @property
    def trained(self) -> int:
        """The number of seeds that did not diverge and are above chance."""
        return sum(
            not result.diverged and result.accuracy >= LEARNED / CLASSES
            for result in self.results.values()
        )

    def last(self, measure: str, moment: str) -> list[float]:
        """List a measure of correlation at the last ReLU."""
        return [values[-1] for values in self.layers(measure, moment)]

    def layers(self, measure: str, moment: str) -> list[Sequence[float]]:
        """List a measure of correlation at each ReLU, for the seeds that have it."""
        found = [getattr(own, f'{measure}_{moment}') for own in self.results.values()]
        return [values for values in found if values]


def section(data: str, results: Rows, folder: Path) -> str:
    """Write the section of a data set, and its figures into a folder."""
    parts = [heading(STUDY, data, results)]
    for name, experiment in STUDY.experiments[data].items():
        rows = make_rows(experiment, results, Row)
        if not rows:
            continue
        parts.append(f'#### {experiment.title}')
        file = f'{name}.png' if data == 'digits' else f'{data}-{name}.png'
        if name == 'correlation':
            parts += [correlation_table(rows), f'![{experiment.title}]({file})']
            draw_correlations(rows, TITLES[data], folder / file)
            continue
        parts.append(table(rows, experiment.x, experiment.panels))
        if experiment.panels:
            parts.append(f'![Mean test accuracy in percent]({file})')
            draw_heat_maps(rows, experiment, TITLES[data], folder / file)
    return '\n\n'.join(parts) + '\n'


def table(rows: Sequence[Row], x: str, panels: Sequence[str]) -> str:
    """Format the accuracy of each normalization at each value of a setting."""
    values = sorted({getattr(row.settings, x) for row in rows})
    lines: dict[tuple, dict] = {}
    for row in rows:
        key = (*panel_of(row.settings, panels), row.settings.norm)
        lines.setdefault(key, {})[getattr(row.settings, x)] = row
    cells = []
    for key, own in lines.items():
        best = max(statistics.mean(row.accuracies) for row in own.values())
        line = [*map(value_of, key)]
        for value in values:
            if value not in own:
                line.append('-')
                continue
            row, count = own[value], len(own[value].results)
            cell = format_mean(row.accuracies, 2)
            if len(own) > 1 and statistics.mean(row.accuracies) == best:
                cell = f'**{cell}**'
            if row.trained < count:
                cell += f' ({row.trained} of {count})'
            line.append(cell)
        cells.append(line)
    return format_table(
        [*panels, 'norm', *(f'{x} {value:g}' for value in values)], cells
    )


def correlation_table(rows: Sequence[Row]) -> str:
    """Format every measure at the last ReLU, before and after training."""
    return format_table(
        [
            'norm',
            *(
                f'{label}, {words}'
                for label in MEASURES.values()
                for words in MOMENTS.values()
            ),
        ],
        [
            [
                row.settings.norm,
                *(
                    format_mean(row.last(measure, moment), 3)
                    for measure in MEASURES
                    for moment in MOMENTS
                ),
            ]
            for row in rows
        ],
    )
