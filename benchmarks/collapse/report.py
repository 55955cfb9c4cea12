"""Tables and figures, from the CSV files alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.shared import settings as shared
from benchmarks.shared.rows import Rows
from benchmarks.shared.settings import make_rows, varied
from benchmarks.shared.tables import TITLES, format_mean, heading, value_of
from mmpsbn.statistics.intervals import (
    PairedDifference,
    compare_paired,
    correct_p_values,
)
from mmpsbn.statistics.tables import format_difference, format_p, format_table

from .experiments import BN, STUDY
from .figures import draw_law, draw_recovery, draw_variants
from .fits import Law, fit_law, format_exponent

RARE = 0.25  # The share of dead channels up to which the paper's law may hold.
# The counts of dead channels that the laws are fitted to, and how the tables name them.
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


class Pair(NamedTuple):
    """A variant with psBN and the same variant with BN."""

    bn: Row
    psbn: Row
    paired: PairedDifference
    """The difference of the accuracies in percent, paired by seed."""
    p: float | None
    """The p value, corrected over an experiment."""


class Fit(NamedTuple):
    """A law of the paper, fitted to the BN trainings of one network."""

    network: str
    x: str
    count: int
    """The number of the count of dead channels."""
    rows: list[Row]
    laws: list[Law]
    """The law of each seed whose trainings allow a fit."""


def section(data: str, results: Rows, folder: Path) -> str:
    """Write the section of a data set, and its figures into a folder."""
    parts = [heading(STUDY, data, results)]
    prefix = '' if data == 'digits' else f'{data}-'

    def figure(name: str, alt: str) -> Path:
        parts.append(f'![{alt}]({prefix}{name}.png)')
        return folder / f'{prefix}{name}.png'

    fits = []
    for name, experiment in STUDY.experiments[data].items():
        rows = make_rows(experiment, results, Row)
        if not rows:
            continue
        parts += [f'#### {experiment.title}', table(compare(rows))]
        if name == 'recovery':
            alt = 'Dead channels over the epochs, mean and 95 % confidence interval'
            draw_recovery(rows, TITLES[data], figure(name, alt))
        elif experiment.x:
            alt = 'Dead channels and accuracy, mean and 95 % confidence interval'
            draw_variants(rows, experiment, TITLES[data], figure(name, alt))
        if name in ('lr', 'gamma'):
            fits += fit_all(rows, name)
    if any(fit.laws for fit in fits):
        parts += ["#### The paper's laws", law_table(fits)]
        alt = 'Channels that died under BN, and the fitted laws'
        last = [fit for fit in fits if fit.count == -1]
        draw_law(last, TITLES[data], figure('law', alt))
    return '\n\n'.join(parts) + '\n'


def compare(rows: Sequence[Row]) -> list[Pair]:
    """Compare each variant with psBN with the same variant with BN, by seed."""
    bn = {row.settings: row for row in rows if not row.settings.alpha}
    pairs = [
        (bn[row.settings._replace(alpha=BN)], row) for row in rows if row.settings.alpha
    ]
    found = []
    for pair in pairs:
        seeds = sorted(pair[0].results.keys() & pair[1].results.keys())
        other, own = (
            [100 * row.results[seed].accuracy for seed in seeds] for row in pair
        )
        found.append(compare_paired(own, other))
    tested = iter(correct_p_values([own.p for own in found if own.p is not None]))
    return [
        Pair(*pair, own, None if own.p is None else next(tested))
        for pair, own in zip(pairs, found)
    ]


def table(pairs: Sequence[Pair]) -> str:
    """Format the dead channels and the accuracies of BN and psBN."""
    shown = varied([pair.psbn for pair in pairs], ('seed', *HIDDEN))
    lines = []
    for pair in pairs:
        both = pair[:2]
        diverged = [own.diverged for own in both]
        lines.append(
            [
                *(value_of(getattr(pair.psbn.settings, n)) or 'random' for n in shown),
                *(
                    format_mean(own.shares(what), 1)
                    for what in ('dead', 'died')
                    for own in both
                ),
                *(format_mean(own.accuracies, 2) for own in both),
                format_paired(pair.paired),
                '-' if pair.p is None else format_p(pair.p),
                ' / '.join(map(str, diverged)) if any(diverged) else '',
            ]
        )
    return format_table(
        [
            *(COLUMNS.get(name, name) for name in shown),
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


def format_paired(found: PairedDifference) -> str:
    """Format a difference of accuracies with its 95 % confidence interval."""
    if found.mean is None or found.low is None:
        return '-' if found.mean is None else format_difference(found.mean, 2)
    return f'{format_difference(found.mean, 2)} ({found.low:.2f} to {found.high:.2f})'


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
                format_exponent(fit.laws),
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
