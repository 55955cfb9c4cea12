"""What a comparison has found: tables, figures, and which to choose."""

import base64
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

from mmpsbn.compare.costs import Cost, list_warnings
from mmpsbn.compare.figures import (
    draw_collapse,
    draw_costs,
    draw_curves,
    draw_lrs,
    draw_scores,
)
from mmpsbn.compare.intervals import ALPHA, Paired, holm, paired
from mmpsbn.compare.runs import Comparison, Run
from mmpsbn.compare.tables import (
    format_interval,
    format_lr,
    format_mean,
    format_p,
    markdown,
    times,
)
from mmpsbn.files import output_folder
from mmpsbn.hooks.filter_collapse_hook import shares

PAGE = 'report.html'
DIFFERENCES = f"""\
Differences are paired by seed: runs of one seed share the order of the data
and, where shapes allow, the initial weights. The p values are those of the
paired t test, corrected over the normalizations of one schedule. Below
{ALPHA:.2f} a difference is significant.

"""
LAYOUT = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 16px/1.5 sans-serif; max-width: 54em; margin: 2em auto;
       padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; margin: 1em 0 }}
th, td {{ border-bottom: 1px solid #ccc; padding: .3em .8em;
         text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
img {{ max-width: 100% }}
pre {{ background: #f4f4f4; padding: .8em; overflow-x: auto }}
</style>
{body}</html>
"""


class Row(NamedTuple):
    """A normalization at a learning rate and a length of the schedule.

    It has the runs of all seeds that have ended.
    """

    norm: str
    lr: float
    runs: list[Run]
    well: list[Run]
    """Those that have not diverged."""
    scores: list[float]
    """mAP of each run; 0 where nothing was detected, or it diverged."""
    scores50: list[float]
    """mAP50 of each run; empty if the config does not measure it."""
    before: list[float]
    """Share of channels that are dead in the first steps of each run that has
    not diverged, sums left out."""
    dead: list[float]
    """And in the last steps."""
    length: float = 1
    """As a multiple of the config's schedule."""

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores)

    @property
    def by_seed(self) -> dict[int, float]:
        return {run.seed: score for run, score in zip(self.runs, self.scores)}


def make_rows(comparison: Comparison, runs: Sequence[Run] | None = None) -> list[Row]:
    """Make the rows of a comparison's table, without those of no ended run.

    Args:
        comparison (Comparison): Whose runs they are.
        runs (list[Run], optional): By default the final ones.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in comparison.finals if runs is None else runs:
        if comparison.result(run):
            groups.setdefault((run.norm, run.lr, run.length), []).append(run)
    rows = []
    for (norm, lr, length), runs in groups.items():
        results = [comparison.result(run) for run in runs]
        scores = [
            [result['metrics'].get(name, 0) for result in results]
            for name in comparison.scores
        ]
        well = [run for run, result in zip(runs, results) if not result.get('diverged')]
        histories = list(filter(None, map(comparison.history, well)))
        rows.append(
            Row(
                norm,
                lr,
                runs,
                well,
                scores[0],
                scores[1] if scores[1:] else [],
                *(
                    [shares(history[at]).get('dead', 0) for history in histories]
                    for at in (0, -1)
                ),
                length,
            )
        )
    order = list(comparison.cfgs)
    return sorted(rows, key=lambda row: (order.index(row.norm), row.length, row.lr))


def best_rows(rows: Sequence[Row]) -> list[Row]:
    """Take of each normalization and length the lr of the highest mean mAP."""
    best: dict[tuple, Row] = {}
    for row in rows:
        key = row.norm, row.length
        if key not in best or row.mean > best[key].mean:
            best[key] = row
    return list(best.values())


class Difference(NamedTuple):
    """A normalization's difference to the baseline, paired by seed."""

    row: Row
    paired: Paired
    """Its p value is not corrected."""
    p: float | None
    """Corrected over the normalizations of the same length (Holm)."""

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < ALPHA


def differences(rows: Sequence[Row], baseline: str) -> list[Difference]:
    """Compare the best rows with the baseline of the same length.

    Args:
        rows (list[Row]): Of a comparison.
        baseline (str): A normalization; nothing is compared with one that has
            no row.
    """
    best, found = best_rows(rows), []
    for length in sorted({row.length for row in best}):
        family = {row.norm: row for row in best if row.length == length}
        if baseline not in family:
            continue
        first = family.pop(baseline).by_seed
        pairs = []
        for row in family.values():
            common = {
                seed: score for seed, score in row.by_seed.items() if seed in first
            }
            pairs.append(
                paired(list(common.values()), [first[seed] for seed in common])
            )
        corrected = iter(holm([pair.p for pair in pairs if pair.p is not None]))
        found += [
            Difference(row, pair, None if pair.p is None else next(corrected))
            for row, pair in zip(family.values(), pairs)
        ]
    return found


def verdict(rows: Sequence[Row], baseline: str, tuning: Sequence[Row] = ()) -> str:
    """Say which normalizations differ from the baseline, and how clearly.

    Args:
        rows (list[Row]): Of the final runs.
        baseline (str): A normalization.
        tuning (list[Row]): Of the runs that chose learning rates, if they
            were others.
    """
    best = best_rows(rows)
    if not any(row.mean for row in best):
        return 'No run detected anything: train longer, or at another lr.'
    if not any(row.norm == baseline for row in best):
        return (
            f'No difference is reported, because the baseline {baseline} has no result.'
        )
    found = differences(rows, baseline)
    lengths = sorted({row.length for row in best})
    text = []
    for length in lengths:
        at = f'At {times(length)} the schedule, ' * (len(lengths) > 1)
        text.append(
            at
            + _conclusion(
                [row for row in best if row.length == length],
                [one for one in found if one.row.length == length],
                baseline,
            )
        )
    return ' '.join(
        [
            *text,
            *_diverged(best),
            *_inequalities(tuning or rows, best),
            *_selection(rows, tuning),
        ]
    )


def _conclusion(best: Sequence[Row], found: Sequence[Difference], baseline: str) -> str:
    """Conclude from the differences at one length, in one sentence."""
    if not any(row.norm == baseline for row in best):
        return f'the baseline {baseline} has no result.'
    if not found:
        (row,) = best
        return (
            f'{baseline} has a mean mAP of {row.mean:.3f}, and there is '
            'no other normalization to compare it with.'
        )
    parts = []
    for one in sorted(found, key=lambda one: -(one.paired.mean or 0)):
        if one.significant:
            pair = one.paired
            low, high = sorted((abs(pair.low), abs(pair.high)))
            parts.append(
                f'**{one.row.norm}** is {abs(pair.mean):.3f} mAP '
                f'{"above" if pair.mean > 0 else "below"} {baseline} (95 % '
                f'CI {format_interval(low, high)}, {pair.seeds} seeds, p '
                f'{format_p(one.p) if one.p < 0.001 else "= " + format_p(one.p)})'
            )
    same = [one.row.norm for one in found if one.p is not None and not one.significant]
    if same:
        parts.append(
            f'{_and(same)} {"is" if len(same) == 1 else "are"} not '
            f'significantly different from {baseline}'
        )
    unknown = [one.row.norm for one in found if one.p is None]
    if unknown:
        parts.append(
            f'{_and(unknown)} {"has" if len(unknown) == 1 else "have"} no '
            f'confidence interval, because fewer than two seeds are common '
            f'with {baseline}'
        )
    return '; '.join(parts) + '.'


def _and(names: Sequence[str]) -> str:
    return ' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))


def _diverged(best: Sequence[Row]) -> list[str]:
    """Say how many runs of the conclusion diverged."""
    lost = [
        f'{row.norm} {len(row.runs) - len(row.well)} of {len(row.runs)}'
        for row in best
        if len(row.well) < len(row.runs)
    ]
    return [f'Runs that diverged count as mAP 0 ({", ".join(lost)}).'] if lost else []


def _inequalities(rows: Sequence[Row], best: Sequence[Row]) -> list[str]:
    """Say where some normalizations had more trials than others.

    Args:
        rows (list[Row]): From which learning rates were chosen.
        best (list[Row]): The final ones.
    """
    found = []
    seeds = {row.norm: len(row.scores) for row in best}
    if len({len(row.scores) for row in best}) > 1:
        numbers = ', '.join(f'{norm} {n}' for norm, n in seeds.items())
        found.append(
            f'The numbers of seeds differ ({numbers}): only common seeds are compared.'
        )
    tried = {
        norm: sorted({row.lr for row in rows if row.norm == norm}) for norm in seeds
    }
    if len(set(map(tuple, tried.values()))) > 1:
        words = '; '.join(
            f'{norm} {", ".join(map(format_lr, own))}' for norm, own in tried.items()
        )
        found.append(
            f'The learning rates differ ({words}): the best of more '
            'rates is higher by chance alone.'
        )
    return found


def _selection(rows: Sequence[Row], tuning: Sequence[Row]) -> list[str]:
    """Say on which images learning rates were selected, and from which."""
    candidates = list(tuning or rows)
    edges = []
    for best in best_rows(candidates):
        lrs = sorted(
            row.lr
            for row in candidates
            if (row.norm, row.length) == (best.norm, best.length)
        )
        if len(lrs) > 1 and best.lr in (lrs[0], lrs[-1]):
            edges.append(f'{best.norm} {format_lr(best.lr)}')
    found = []
    if len({row.lr for row in rows}) > 1 and not tuning:
        found.append(
            'The learning rates were selected on the validation set, which '
            'makes the results optimistic. `--tune 0.2` selects them on '
            'training images instead.'
        )
    if edges:
        found.append(
            'The selected learning rate is the lowest or the highest of '
            f'--lrs ({", ".join(dict.fromkeys(edges))}): the range may be too '
            'narrow.'
        )
    return found


def write_report(
    comparison: Comparison, costs: dict[str, Cost], command: str
) -> Path | None:
    """Write ``report.md``, ``report.html`` and figures into the work dir.

    The page holds its figures, and needs no other file and no network.

    Args:
        comparison (Comparison): Some runs of which have ended.
        costs (dict): Of its normalizations.
        command (str): That made it.

    Returns:
        Path: Of the page; None if no run has ended.

    Raises:
        InputError: If they cannot be written; an earlier report stays.
    """
    rows = make_rows(comparison)
    if not rows:  # Runs of the first stage alone say nothing yet.
        return None
    with output_folder(str(comparison.work_dir)) as folder:
        _write(comparison, rows, costs, command, Path(folder))
    return comparison.work_dir / PAGE


def _write(
    comparison: Comparison,
    rows: Sequence[Row],
    costs: dict[str, Cost],
    command: str,
    out: Path,
) -> None:
    baseline = next(iter(comparison.cfgs))
    tuning = make_rows(comparison, comparison.tuning)
    best = {
        row.norm + f', {times(row.length)}' * (row.length != 1): row
        for row in best_rows(rows)
        if row.well
    }
    figures = {
        'scores.png': 'mAP of every seed, and its mean (bar)',
        'curves.png': 'mAP while training: mean, and 95 % confidence interval',
        'collapse.png': 'Dead channels while training: mean, and 95 % '
        'confidence interval',
        'costs.png': 'What a training step costs',
    }
    draw_scores(rows, str(out / 'scores.png'))
    tried = tuning or rows
    if len({row.lr for row in tried}) > 1:
        text = 'held-out training images' if tuning else 'the validation set'
        figures = {
            'lrs.png': f'By learning rate, on {text}: mean, and range of the seeds',
            **figures,
        }
        lengths = sorted({row.length for row in tried})
        draw_lrs(
            {
                f'{times(length)} the schedule' * (len(lengths) > 1): [
                    row for row in tried if row.length == length
                ]
                for length in lengths
            },
            str(out / 'lrs.png'),
        )
    draw_curves(
        {
            name: [comparison.curve(run, comparison.scores[0]) for run in row.well]
            for name, row in best.items()
        },
        comparison.unit,
        str(out / 'curves.png'),
    )
    histories = {
        name: [
            {
                line['iter']: 100 * shares(line).get('dead', 0)
                for line in comparison.history(run)
            }
            for run in row.well
        ]
        for name, row in best.items()
    }
    draw_collapse(histories, str(out / 'collapse.png'))
    draw_costs({norm: costs[norm] for norm in comparison.cfgs}, str(out / 'costs.png'))
    title = 'Normalizations compared'
    compared = difference_table(rows, baseline)
    pictures = '\n\n'.join(
        f'![{text}]({name})\n\n*{text}.*' for name, text in figures.items()
    )
    text = f"""# {title}

{verdict(rows, baseline, tuning)}

{compared + DIFFERENCES if compared else ''}\
{table(rows)}

CI is the confidence interval of the mean (Student's t), which takes at least
two seeds. Dead is the mean share of the channels before a ReLU that no image
of the last training steps opened, dead before that of the first steps;
residual sums are left out. A run that diverged has mAP 0, and its channels are
not counted.

{_tuning_text(comparison, tuning)}\
{_cost_table(comparison, costs)}

Time of a training step on one batch, without loading it, side by side; saved
is what autograd keeps of its forward.

{pictures}

{_list('Without a result:', _missing(comparison))}\
{_list('Remarks:', comparison.remarks())}\
{_list('Beware:', list_warnings(costs))}```shell
{command}
```
"""
    (out / 'report.md').write_text(text, encoding='utf-8')
    body = MarkdownIt('commonmark').enable('table').render(text)
    for name in figures:
        data = base64.b64encode((out / name).read_bytes()).decode()
        body = body.replace(f'src="{name}"', f'src="data:image/png;base64,{data}"')
    (out / PAGE).write_text(LAYOUT.format(title=title, body=body), encoding='utf-8')


def table(rows: Sequence[Row]) -> str:
    """mAP and dead channels of some rows, in Markdown."""
    lengths = len({row.length for row in rows}) > 1
    return markdown(
        [
            'Norm',
            'schedule',
            'lr',
            'seeds',
            'mAP',
            '95 % CI',
            'mAP50',
            '95 % CI',
            'dead before',
            'dead',
            'diverged',
        ],
        [
            [
                row.norm,
                times(row.length) * lengths,
                format_lr(row.lr),
                str(len(row.runs)),
                *format_mean(row.scores),
                *format_mean(row.scores50),
                *(
                    f'{statistics.mean(shares):.2%}' if shares else '-'
                    for shares in (row.before, row.dead)
                ),
                str(len(row.runs) - len(row.well)),
            ]
            for row in rows
        ],
    )


def difference_table(rows: Sequence[Row], baseline: str) -> str:
    """Differences to the baseline of the same length, in Markdown.

    The text is empty if nothing can be compared.
    """
    found = differences(rows, baseline)
    if not found:
        return ''
    lengths = len({row.length for row in rows}) > 1
    lines = []
    for row, pair, p in found:
        lines.append(
            [
                row.norm,
                times(row.length) * lengths,
                str(pair.seeds),
                '-' if pair.mean is None else f'{pair.mean:+.3f}',
                '-' if p is None else format_interval(pair.low, pair.high),
                '-' if p is None else format_p(p),
            ]
        )
    head = [
        'Norm',
        'schedule',
        'seeds',
        f'mAP minus that of {baseline}',
        '95 % CI',
        'p (Holm)',
    ]
    return f'{markdown(head, lines)}\n\n'


def _tuning_text(comparison: Comparison, tuning: Sequence[Row]) -> str:
    if not tuning:
        return ''
    lengths = len({row.length for row in tuning}) > 1
    lines = [
        [
            row.norm,
            times(row.length) * lengths,
            format_lr(row.lr),
            str(len(row.runs)),
            *format_mean(row.scores),
            'yes' if row.lr == comparison.chosen(row.norm, row.length) else 'no',
        ]
        for row in tuning
    ]
    head = ['Norm', 'schedule', 'lr', 'seeds', 'mAP', '95 % CI', 'chosen']
    held_out = comparison.held_out
    return f"""The learning rates were chosen by the mAP on held-out training
images ({held_out.images}, {held_out.share:.0%}). The final runs above trained
on all training images. The validation set had no part in the choice.

{markdown(head, lines)}

"""


def _cost_table(comparison: Comparison, costs: dict[str, Cost]) -> str:
    first = next(iter(comparison.cfgs))
    return markdown(
        ['Norm', 'step, ms', f'of {first}', 'saved, MiB', 'peak, MiB'],
        [
            [
                norm,
                f'{1e3 * cost.step:.0f}',
                f'{cost.ratio:.2f}',
                f'{cost.saved:.1f}',
                '-' if cost.peak is None else f'{cost.peak:.0f}',
            ]
            for norm, cost in costs.items()
            if norm in comparison.cfgs
        ],
    )


def _missing(comparison: Comparison) -> list[str]:
    return [
        f'{run}: {comparison.failures.get(run, "has not ended")}'
        for run in comparison.runs
        if not comparison.result(run)
    ]


def _list(title: str, items: Sequence[str]) -> str:
    if not items:
        return ''
    return '\n'.join([title, '', *(f'- {item}' for item in items), '', ''])
