"""Tables and figures, from the CSV files alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.shared import settings as shared
from benchmarks.shared.command import SEEDS
from benchmarks.shared.rows import Rows
from benchmarks.shared.settings import make_rows, varied
from benchmarks.shared.tables import TITLES, format_mean, heading, value_of, write_page
from mmpsbn.compare.intervals import (
    PairedDifference,
    compare_paired,
    confidence_margin,
    correct_p_values,
)
from mmpsbn.compare.tables import format_p, format_table

from .experiments import BN, STUDY, Settings
from .figures import draw_law, draw_recovery, draw_variants
from .fits import Law, fit_law

RARE = 0.25  # The share of dead channels up to which the paper's law may hold.
# Of the counts of dead channels: which one, and in words.
MOMENTS = {1: 'after a tenth', -1: 'at the end'}
# Settings that a table does not show, because others imply them.
HIDDEN = ('classes', 'weight_decay')
COLUMNS = {'norm_decay': 'factor of the decay', 'start': 'weights'}


class Row(shared.Row):
    """A variant with the shares of its channels."""

    def shares(self, what: str, count: int = -1) -> list[float]:
        """List a share of the channels in percent, of seeds that did not diverge.

        Args:
            what (str): ``dead`` or ``died``.
            count (int): The number of the count. Defaults to the last one.
        """
        return [
            100 * getattr(result, what)[count] / result.channels
            for result in self.results.values()
            if not result.diverged
        ]


class Fit(NamedTuple):
    """A law of the paper, fitted to the BN trainings of one network."""

    network: str
    x: str
    count: int
    """The number of the count of dead channels."""
    rows: list[Row]
    laws: list[Law]
    """The law of each seed whose trainings allow a fit."""


def write_report(results: dict[str, Rows], folder: Path) -> Path:
    """Write the figures, and the tables between the marks of a page.

    Args:
        results (dict): The results on each data set.
        folder (Path): The folder of the figures. If it has a README.md with
            the two marks, the tables are written there, otherwise to
            report.md.

    Returns:
        Path: The page.
    """
    parts = [_section(data, rows, folder) for data, rows in results.items() if rows]
    return write_page(folder, '\n'.join(parts) or 'There are no results yet.\n')


def _section(data: str, results: Rows, folder: Path) -> str:
    epochs = next(iter(results)).epochs
    missing = set(STUDY.jobs(data, SEEDS, epochs)) - set(results)
    parts = [heading(TITLES[data], results, len(missing))]
    prefix = '' if data == 'digits' else f'{data}-'

    def figure(name: str, alt: str) -> Path:
        parts.append(f'![{alt}]({prefix}{name}.png)')
        return folder / f'{prefix}{name}.png'

    fits = []
    for name, experiment in STUDY.experiments[data].items():
        rows = make_rows(experiment, results, Row)
        if not any(row.settings.alpha for row in rows):
            continue
        title = experiment.title
        parts += [f'#### {title}', table(rows)]
        if name == 'recovery':
            alt = 'Dead channels over the epochs, mean and 95 % confidence interval'
            draw_recovery(rows, figure(name, alt))
        elif experiment.x:
            alt = 'Dead channels and accuracy, mean and 95 % confidence interval'
            draw_variants(rows, experiment, figure(name, alt))
        if name in ('lr', 'gamma'):
            fits += fit_all(rows, name)
    if any(fit.laws for fit in fits):
        parts += ["#### The paper's laws", law_table(fits)]
        alt = 'Channels that died under BN, and the fitted laws'
        draw_law([fit for fit in fits if fit.count == -1], figure('law', alt))
    return '\n\n'.join(parts) + '\n'


def table(rows: Sequence[Row]) -> str:
    """Compare each variant with psBN with the same variant with BN."""
    pairs = [
        (row, next((bn for bn in rows if bn.settings == _with_bn(row.settings)), None))
        for row in rows
        if row.settings.alpha
    ]
    told = varied([row for row, _ in pairs], ('seed', *HIDDEN))
    differences = [difference(row, bn) for row, bn in pairs]
    known = [own.p for own in differences if own.p is not None]
    corrected = iter(correct_p_values(known))
    lines = []
    for (row, bn), found in zip(pairs, differences):
        both = [bn, row]
        line = [value_of(getattr(row.settings, name)) or 'random' for name in told]
        for what in ('dead', 'died'):
            line += [format_mean(own.shares(what), 1) if own else '-' for own in both]
        line += [format_mean(own.accuracies, 2) if own else '-' for own in both]
        line += [
            '-' if found.mean is None else format_interval(found),
            '-' if found.p is None else format_p(next(corrected)),
        ]
        diverged = [own.diverged if own else 0 for own in both]
        line.append(' / '.join(map(str, diverged)) if any(diverged) else '')
        lines.append(line)
    return format_table(
        [
            *(COLUMNS.get(name, name) for name in told),
            'dead, %: BN',
            'psBN',
            'died, %: BN',
            'psBN',
            'accuracy, %: BN',
            'psBN',
            'psBN minus BN (95 % CI)',
            'p (Holm)',
            'diverged: BN / psBN',
        ],
        lines,
    )


def _with_bn(settings: Settings) -> Settings:
    return settings._replace(alpha=BN)


def difference(row: Row, other: Row | None) -> PairedDifference:
    """Compare the accuracies of two variants in percent, paired by seed."""
    seeds = row.results.keys() & (other.results.keys() if other else ())
    return (
        compare_paired(
            *(
                [100 * own.results[seed].accuracy for seed in sorted(seeds)]
                for own in (row, other)
                if own
            )
        )
        if seeds
        else PairedDifference(0)
    )


def format_interval(found: PairedDifference) -> str:
    """Format a difference of accuracies with its 95 % confidence interval."""
    if found.low is None:
        return f'{found.mean:+.2f}'
    return f'{found.mean:+.2f} ({found.low:.2f} to {found.high:.2f})'


def fit_all(rows: Sequence[Row], x: str) -> list[Fit]:
    """Fit the law to the BN trainings of every network, at two moments.

    The fits are of all values of x, and of those at which few channels died.
    """
    fits = []
    for network in dict.fromkeys(row.settings.network for row in rows):
        own = [
            row
            for row in rows
            if row.settings.network == network and row.settings.alpha == BN
        ]
        for count in MOMENTS:
            rare = [
                row
                for row in own
                if np.mean(row.shares('died', count) or 100) < 100 * RARE
            ]
            for some in [own, rare] if len(rare) < len(own) else [own]:
                fits.append(Fit(network, x, count, some, laws(some, x, count)))
    return fits


def laws(rows: Sequence[Row], x: str, count: int) -> list[Law]:
    """Fit the law to the trainings of each seed; diverged ones are left out."""
    points: dict[int, list] = {}
    for row in rows:
        for seed, result in row.results.items():
            if not result.diverged:
                points.setdefault(seed, []).append(
                    (getattr(row.settings, x), result.died[count], result.channels)
                )
    return [law for own in points.values() if (law := fit_law(own))]


def format_exponent(fit: Fit) -> str:
    """Format the mean of the seeds' exponents with its 95 % interval."""
    exponents = [law.exponent for law in fit.laws]
    if not exponents:
        return '-'
    mean = np.mean(exponents)
    if len(exponents) < 2:
        return f'{mean:.2f}'
    margin = confidence_margin(exponents)
    return f'{mean:.2f} ({mean - margin:.2f} to {mean + margin:.2f})'


def law_table(fits: Sequence[Fit]) -> str:
    """List the exponents with their intervals over the seeds."""
    lines = []
    for fit in fits:
        values = [getattr(row.settings, fit.x) for row in fit.rows]
        shares = [np.mean(row.shares('died', fit.count) or np.nan) for row in fit.rows]
        lines.append(
            [
                fit.network,
                fit.x,
                MOMENTS[fit.count],
                f'{min(values):g} to {max(values):g}' if values else '-',
                f'{min(shares):.1f} to {max(shares):.1f}' if values else '-',
                format_exponent(fit),
                str(len(fit.laws)),
                '2' if fit.x == 'lr' else '-2',
            ]
        )
    return format_table(
        [
            'network',
            'against',
            'moment',
            'fitted values',
            'died, %',
            'exponent (95 % CI)',
            'seeds',
            'paper',
        ],
        lines,
    )
