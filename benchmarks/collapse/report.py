"""Tables of what was found, beside their figures."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.shared import settings as shared
from benchmarks.shared.settings import make_rows, varied
from benchmarks.shared.tables import format_mean_and_spread, heading, value_of
from mmpsbn.compare.tables import format_table
from mmpsbn.files import write_atomically

from .experiments import BN, EXPERIMENTS, PSBN, Settings, with_starts
from .figures import draw_accuracy_and_dead, draw_law, draw_recovery
from .fits import Law, estimate, exponents, fit_law

RARE = 0.25  # A share of channels, up to which a law of few may hold.
# Of the checks of a training: where, and in words.
MOMENTS = {1: 'after a tenth', -1: 'at the end'}
# Said in words, or the same in all that is compared.
UNTOLD = ('seed', 'start', 'half', 'checks', 'data', 'epochs', 'alpha', 'weight_decay')


class Row(shared.Row):
    """With the shares of its channels."""

    def shares(self, what: str, check: int = -1) -> list[float]:
        """Per cent of channels, of the seeds that have not diverged."""
        return [
            100 * result[what][check] / result['channels']
            for result in self.results
            if not result['diverged']
        ]


class Fitted(NamedTuple):
    """A law of the paper, tried on the trainings of one network."""

    network: str
    x: str
    check: int
    rows: list[Row]
    law: Law | None
    """Of all seeds together."""
    exponents: list[float]
    """Of each seed."""


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
    every = with_starts([job for own in jobs.values() for job in own])
    parts = [heading('Filter collapse', every, results, versions)]
    for name, own in jobs.items():
        experiment, rows = EXPERIMENTS[name], make_rows(own, results, Row)
        parts += [f'## {experiment.title}', table(rows, _reference(name))]
        if name == 'recovery':
            draw_recovery(rows, str(out / 'recovery.png'))
        else:
            draw_accuracy_and_dead(
                rows, experiment.x, experiment.panels, str(out / f'{name}.png')
            )
        parts.append(f'![{experiment.title}]({name}.png)')
    fits = [
        fitted
        for name, x in (('lr', 'lr'), ('gamma', 'gamma'))
        if name in jobs
        for fitted in fit_all(make_rows(jobs[name], results, Row), x)
    ]
    if fits:
        draw_law([f for f in fits if f.check == -1], str(out / 'law.png'))
        parts += ["## The paper's laws", law_table(fits), '![Laws](law.png)']
    text = '\n\n'.join(parts) + '\n'
    write_atomically(out / 'report.md', text.encode())
    return out / 'report.md'


def _reference(name: str) -> float:
    """The alpha that others are compared with."""
    return PSBN if name == 'alpha' else BN


def table(rows: Sequence[Row], reference: float) -> str:
    """Accuracy and dead channels of every variant.

    Args:
        rows (list[Row]): Of an experiment.
        reference (float): The alpha of the variants that the others are
            compared with, seed by seed.
    """
    told = varied(rows, UNTOLD)
    started = any(row.settings.start for row in rows)
    summed = any(row.results[0]['sums'][1] for row in rows)
    against = f'psBN {reference}' if reference else 'BN'
    head = [
        *(['start'] if len({row.settings.start for row in rows}) > 1 else []),
        *told,
        'norm',
        'accuracy, %',
        'spread',
        f'minus {against}',
        *(['dead before, %'] if started else []),
        'dead, %',
        'spread',
        'died, %',
        'came back, %',
        *(['dead sums, %'] if summed else []),
        'gamma < 1e-3',
        'diverged',
    ]
    many = len({row.settings.alpha for row in rows}) > 2
    lines = []
    for row in rows:
        settings = row.settings
        line = []
        if head[0] == 'start':
            line.append('BN, collapsed' if settings.start else 'scratch')
        line += [value_of(getattr(settings, name)) for name in told]
        line.append(
            f'psBN {settings.alpha:g}' if many and settings.alpha else settings.norm
        )
        line += [
            *format_mean_and_spread(row.accuracies, 2),
            _difference(row, rows, reference),
        ]
        if started:
            line.append(format_mean_and_spread(row.shares('dead', 0), 1)[0])
        line += format_mean_and_spread(row.shares('dead'), 1)
        line += [
            format_mean_and_spread(row.shares(what), 1)[0]
            for what in ('died', 'came_back')
        ]
        if summed:
            line.append(_sums(row))
        line += [
            f'{statistics.mean(r["small_gamma"] for r in row.results):.1f}',
            str(row.diverged),
        ]
        lines.append(line)
    return format_table(head, lines)


def _difference(row: Row, rows: Sequence[Row], reference: float) -> str:
    """Of accuracies, from the variant that differs in alpha alone."""
    other = row.settings._replace(alpha=reference)
    if other == row.settings:
        return ''
    for candidate in rows:
        if candidate.settings == other:
            found = estimate(
                [mine - its for mine, its in zip(row.accuracies, candidate.accuracies)]
            )
            return _interval(found, 2, sign='+')
    return ''


def _sums(row: Row) -> str:
    sums = [r['sums'] for r in row.results if not r['diverged']]
    return format_mean_and_spread(
        [100 * dead / channels for dead, channels in sums if channels], 1
    )[0]


def fit_all(rows: Sequence[Row], x: str) -> list[Fitted]:
    """The law of every network's BN trainings, at each moment.

    On all values of x, and on those where few channels have died.
    """
    fits = []
    for network in dict.fromkeys(row.settings.network for row in rows):
        own = [
            row
            for row in rows
            if row.settings.network == network and row.settings.alpha == BN
        ]
        for check in MOMENTS:
            rare = [
                row
                for row in own
                if np.mean(row.shares('died', check) or 100) < 100 * RARE
            ]
            for some in [own, rare] if len(rare) < len(own) else [own]:
                points = [points_of(row, x, check) for row in some]
                # Seeds as rows; None where a training diverged.
                by_seed = [[point for point in seed if point] for seed in zip(*points)]
                together = [point for seed in by_seed for point in seed]
                fits.append(
                    Fitted(
                        network, x, check, some, fit_law(together), exponents(by_seed)
                    )
                )
    return fits


def points_of(row: Row, x: str, check: int) -> list[tuple | None]:
    """For each seed x, channels that have died, and all."""
    return [
        None
        if result['diverged']
        else (getattr(row.settings, x), result['died'][check], result['channels'])
        for result in row.results
    ]


def law_table(fits: Sequence[Fitted]) -> str:
    """Exponents with their intervals over the seeds."""
    lines = []
    for fit in fits:
        values = [getattr(row.settings, fit.x) for row in fit.rows]
        shares = [np.mean(row.shares('died', fit.check) or np.nan) for row in fit.rows]
        lines.append(
            [
                fit.network,
                fit.x,
                MOMENTS[fit.check],
                f'{min(values):g} to {max(values):g}' if values else '-',
                f'{min(shares):.1f} to {max(shares):.1f}' if values else '-',
                f'{fit.law.exponent:.2f}' if fit.law else '-',
                _interval(estimate(fit.exponents), 2) if fit.exponents else '-',
                str(len(fit.exponents)),
                '2' if fit.x == 'lr' else '-2',
            ]
        )
    return format_table(
        [
            'network',
            'against',
            'moment',
            'fitted',
            'died, %',
            'exponent, all seeds',
            'mean of seeds',
            'seeds',
            'paper',
        ],
        lines,
    )


def _interval(found, digits: int, sign: str = '') -> str:
    text = f'{found.mean:{sign}.{digits}f}'
    if np.isnan(found.low):
        return text
    return f'{text} ({found.low:.{digits}f} to {found.high:.{digits}f})'
