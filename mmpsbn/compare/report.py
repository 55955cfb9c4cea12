"""The report of a comparison: conclusions, tables and figures."""

import base64
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

from mmpsbn.compare.comparison import Comparison
from mmpsbn.compare.costs import Costs, list_warnings
from mmpsbn.compare.figures import draw_costs, draw_curves, draw_lrs, draw_scores
from mmpsbn.compare.runs import Run
from mmpsbn.files import output_folder
from mmpsbn.hooks.filter_collapse_hook import shares
from mmpsbn.statistics.intervals import (
    ALPHA,
    PairedDifference,
    compare_paired,
    correct_p_values,
)
from mmpsbn.statistics.tables import (
    format_difference,
    format_interval,
    format_length,
    format_lr,
    format_mean,
    format_p,
    format_table,
)

PAGE = 'report.html'
DIFFERENCES = f"""\
Differences are paired by seed: runs of one seed share the order of the data
and, where shapes allow, the initial weights. The p values are those of the
paired t test, corrected over the normalizations of one schedule. Below
{ALPHA:.2f} a difference is significant.

"""
# The columns of mAP in tables.
SCORES = ['Norm', 'schedule', 'lr', 'seeds', 'mAP', '95 % CI']
TITLE = 'Normalizations compared'
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
    """The ended runs of a normalization at one learning rate and length."""

    norm: str
    lr: float
    runs: list[Run]
    well: list[Run]
    """The runs that have not diverged."""
    scores: list[float]
    """The mAP of each run; 0 if nothing was detected, or if it diverged."""
    scores50: list[float]
    """The mAP50 of each run; empty if the config does not measure it."""
    before: list[float]
    """The share of dead channels, without residual sums, in the first steps of
    each run that has not diverged."""
    dead: list[float]
    """The same share in the last steps."""
    length: float = 1
    """A multiple of the config's schedule."""

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores)

    @property
    def by_seed(self) -> dict[int, float]:
        return {run.seed: score for run, score in zip(self.runs, self.scores)}

    @property
    def diverged(self) -> int:
        return len(self.runs) - len(self.well)


def make_rows(comparison: Comparison, runs: Sequence[Run] | None = None) -> list[Row]:
    """Group the runs of a comparison that have ended, by default the final ones."""
    groups: dict[tuple, list[Run]] = {}
    for run in comparison.finals if runs is None else runs:
        if comparison.result(run):
            groups.setdefault((run.norm, run.lr, run.length), []).append(run)
    rows = []
    for (norm, lr, length), runs in groups.items():
        results = [comparison.result(run) for run in runs]
        scores = [
            [result['metrics'].get(name, 0) for result in results]
            for name in comparison.score_names
        ]
        well = [run for run, result in zip(runs, results) if not result.get('diverged')]
        histories = list(filter(None, map(comparison.history, well)))
        dead = ([shares(x[at]).get('dead', 0) for x in histories] for at in (0, -1))
        scores = [*scores, []][:2]
        rows.append(Row(norm, lr, runs, well, *scores, *dead, length))
    order = list(comparison.cfgs)
    return sorted(rows, key=lambda row: (order.index(row.norm), row.length, row.lr))


def select_best(rows: Sequence[Row]) -> list[Row]:
    """Select the lr with the highest mean mAP of each normalization and length."""
    best: dict[tuple, Row] = {}
    for row in rows:
        key = row.norm, row.length
        if key not in best or row.mean > best[key].mean:
            best[key] = row
    return list(best.values())


def group_by_length(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group rows by length; the title of a single length is empty."""
    lengths = sorted({row.length for row in rows})
    return {
        f'{format_length(length)} the schedule' * (len(lengths) > 1): [
            row for row in rows if row.length == length
        ]
        for length in lengths
    }


class Difference(NamedTuple):
    """The difference of a normalization to the baseline, paired by seed."""

    row: Row
    paired: PairedDifference
    """The difference. Its p value is not corrected."""
    p: float | None
    """The p value, corrected over the normalizations of one length (Holm)."""

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < ALPHA


def compare_with_baseline(rows: Sequence[Row], baseline: str) -> list[Difference]:
    """Compare the best rows with the baseline of the same length, if it has a row."""
    found = []
    for best in group_by_length(select_best(rows)).values():
        family = {row.norm: row for row in best}
        if baseline not in family:
            continue
        first = family.pop(baseline).by_seed
        pairs = []
        for own in (row.by_seed for row in family.values()):
            common = [seed for seed in own if seed in first]
            scores = [[x[seed] for seed in common] for x in (own, first)]
            pairs.append(compare_paired(*scores))
        corrected = iter(correct_p_values([x.p for x in pairs if x.p is not None]))
        found += [
            Difference(row, pair, None if pair.p is None else next(corrected))
            for row, pair in zip(family.values(), pairs)
        ]
    return found


def describe_results(
    rows: Sequence[Row], baseline: str, tuning: Sequence[Row] = ()
) -> str:
    """Describe which normalizations differ from the baseline, and the caveats."""
    best = select_best(rows)
    if not any(row.mean for row in best):
        return 'No run detected anything: train longer, or at another lr.'
    if not any(row.norm == baseline for row in best):
        return (
            f'No difference is reported, because the baseline {baseline} has no result.'
        )
    text = [
        f'At {title}, ' * bool(title) + _conclude(own, baseline)
        for title, own in group_by_length(best).items()
    ]
    return ' '.join([*text, *_list_caveats(rows, best, tuning)])


def _conclude(best: Sequence[Row], baseline: str) -> str:
    """Conclude from the differences at one length, in one sentence."""
    if not any(row.norm == baseline for row in best):
        return f'the baseline {baseline} has no result.'
    if len(best) == 1:
        return (
            f'{baseline} has a mean mAP of {best[0].mean:.3f}, and there is '
            'no other normalization to compare it with.'
        )
    found = compare_with_baseline(best, baseline)
    parts = []
    for one in sorted(found, key=lambda one: -(one.paired.mean or 0)):
        if one.significant:
            pair, p = one.paired, '= ' * (one.p >= 0.001) + format_p(one.p)
            interval = format_interval(*sorted((abs(pair.low), abs(pair.high))))
            side = 'above' if pair.mean > 0 else 'below'
            parts.append(
                f'**{one.row.norm}** is {abs(pair.mean):.3f} mAP {side} {baseline} '
                f'(95 % CI {interval}, {pair.seeds} seeds, p {p})'
            )
    same = [one.row.norm for one in found if one.p is not None and not one.significant]
    unknown = [one for one in found if one.p is None]
    few = [one.row.norm for one in unknown if one.paired.seeds < 2]
    constant = [one.row.norm for one in unknown if one.paired.seeds > 1]
    without = 'no confidence interval, because'
    for names, verbs, text in (
        (same, ('is', 'are'), 'not significantly different from'),
        (few, ('has', 'have'), f'{without} fewer than two seeds are common with'),
        (constant, ('has', 'have'), f'{without} every seed has the same difference to'),
    ):
        if names:
            joined = ' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))
            parts.append(f'{joined} {verbs[len(names) > 1]} {text} {baseline}')
    return '; '.join(parts) + '.'


def _list_caveats(rows, best, tuning) -> list[str]:
    """List what limits a conclusion: divergence, and unequal or biased trials."""
    caveats = []
    lost = ', '.join(
        f'{row.norm} {row.diverged} of {len(row.runs)}' for row in best if row.diverged
    )
    if lost:
        caveats.append(f'Runs that diverged count as mAP 0 ({lost}).')
    for title, own in group_by_length(best).items():
        if len({len(row.scores) for row in own}) > 1:
            place = f' at {title}' * bool(title)
            numbers = ', '.join(f'{row.norm} {len(row.scores)}' for row in own)
            caveats.append(
                f'The numbers of seeds differ{place} ({numbers}): only common seeds '
                'are compared.'
            )
    tried = tuning or rows
    norms = dict.fromkeys(row.norm for row in best)
    lrs = {norm: sorted({x.lr for x in tried if x.norm == norm}) for norm in norms}
    if len(set(map(tuple, lrs.values()))) > 1:
        words = '; '.join(
            f'{norm} {", ".join(map(format_lr, own))}' for norm, own in lrs.items()
        )
        caveats.append(
            f'The learning rates differ ({words}): the best of more '
            'rates is higher by chance alone.'
        )
    if len({row.lr for row in rows}) > 1 and not tuning:
        caveats.append(
            'The learning rates were selected on the validation set, which makes the '
            'results optimistic. `--tune 0.2` selects them on training images instead.'
        )
    edges = {}
    for row in select_best(tried):
        own = {x.lr for x in tried if (x.norm, x.length) == (row.norm, row.length)}
        if len(own) > 1 and row.lr in (min(own), max(own)):
            edges[f'{row.norm} {format_lr(row.lr)}'] = True
    if edges:
        caveats.append(
            'The selected learning rate is the lowest or the highest of '
            f'--lrs ({", ".join(edges)}): the range may be too narrow.'
        )
    return caveats


def write_report(comparison: Comparison, costs: Costs, command: str) -> Path | None:
    """Write ``report.md``, ``report.html`` and figures into the work dir.

    The page contains its figures. It needs no other file and no network.

    Args:
        comparison (Comparison): The comparison.
        costs (dict): The cost of each normalization.
        command (str): The command that the report shows.

    Returns:
        Path: The page; None if no final run has ended.

    Raises:
        InputError: If they cannot be written. An earlier report is unchanged
            then.
    """
    rows = make_rows(comparison)
    if not rows:  # Tuning runs alone are no result.
        return None
    tuning = make_rows(comparison, comparison.tuning)
    costs = {norm: costs[norm] for norm in comparison.cfgs}
    with output_folder(str(comparison.work_dir)) as folder:
        out = Path(folder)
        figures = _draw_figures(comparison, rows, tuning, costs, out)
        text = _format_report(comparison, rows, tuning, costs, command, figures)
        (out / 'report.md').write_text(text, encoding='utf-8')
        body = MarkdownIt('commonmark').enable('table').render(text)
        for name in figures:
            data = base64.b64encode((out / name).read_bytes()).decode()
            body = body.replace(f'src="{name}"', f'src="data:image/png;base64,{data}"')
        page = LAYOUT.format(title=TITLE, body=body)
        (out / PAGE).write_text(page, encoding='utf-8')
    return comparison.work_dir / PAGE


def _draw_figures(comparison, rows, tuning, costs, out: Path) -> dict[str, str]:
    """Draw the figures of a report, and return the caption of each file."""
    captions = {}
    tried = tuning or rows
    if len({row.lr for row in tried}) > 1:
        images = 'held-out training images' if tuning else 'the validation set'
        captions['lrs.png'] = f'By learning rate, on {images}: mean, and 95 % CI'
        draw_lrs(group_by_length(tried), str(out / 'lrs.png'))
    captions['scores.png'] = 'mAP of every seed, and its mean (bar)'
    draw_scores(rows, str(out / 'scores.png'))
    curves, collapse = {}, {}
    for row in select_best(rows):
        if row.well:
            name = row.norm + f', {format_length(row.length)}' * (row.length != 1)
            curves[name] = [
                comparison.curve(run, comparison.score_names[0]) for run in row.well
            ]
            collapse[name] = [
                {x['iter']: 100 * shares(x).get('dead', 0) for x in history}
                for history in map(comparison.history, row.well)
            ]
    dead = 'dead channels, %'
    for name, lines, xlabel, ylabel, bottom, what in (
        ('curves.png', curves, comparison.unit, 'mAP', None, 'mAP'),
        ('collapse.png', collapse, 'iteration', dead, 0, 'Dead channels'),
    ):
        if any(len(set.intersection(*map(set, own))) > 1 for own in lines.values()):
            captions[name] = (
                f'{what} during training: mean, and 95 % confidence interval'
            )
            labels = dict(xlabel=xlabel, ylabel=ylabel)
            draw_curves(lines, str(out / name), **labels, bottom=bottom)
    captions['costs.png'] = 'Cost of a training step'
    draw_costs(costs, str(out / 'costs.png'))
    return captions


def _format_report(comparison, rows, tuning, costs, command, figures) -> str:
    baseline = next(iter(comparison.cfgs))
    compared = format_differences(rows, baseline)
    pictures = '\n\n'.join(
        f'![{text}]({name})\n\n*{text}.*' for name, text in figures.items()
    )
    missing = [
        f'{run}: {comparison.failures.get(run, "has not ended")}'
        for run in comparison.runs
        if not comparison.result(run)
    ]
    return f"""# {TITLE}

{describe_results(rows, baseline, tuning)}

{compared + DIFFERENCES if compared else ''}\
{format_rows(rows)}

CI is the confidence interval of the mean (Student's t), which needs at least
two seeds. Dead is the mean share of the channels before a ReLU that no image
of the last training steps activated. Dead before is that share in the first
steps. Residual sums are left out. A run that diverged has mAP 0, and its
channels are not counted.

{_format_tuning(comparison, tuning)}\
{_format_costs(costs)}

The time of a training step is measured on one batch, in turns, without loading
data. *Stored* counts the activations that autograd stores for the backward pass.

{pictures}

{_format_list('Without a result:', missing)}\
{_format_list('Remarks:', comparison.remarks())}\
{_format_list('Warnings:', list_warnings(costs))}```shell
{command}
```
"""


def _format_scores(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Iterate over the cells of rows for the columns in SCORES."""
    several = len({row.length for row in rows}) > 1
    for row in rows:
        length = format_length(row.length) * several
        cells = [row.norm, length, format_lr(row.lr), str(len(row.runs))]
        yield [*cells, *format_mean(row.scores)]


def format_rows(rows: Sequence[Row]) -> str:
    """Format mAP and dead channels of rows as a Markdown table."""
    head = [*SCORES, 'mAP50', '95 % CI', 'dead before', 'dead', 'diverged']
    lines = []
    for row, cells in zip(rows, _format_scores(rows)):
        dead = [
            f'{statistics.mean(x):.2%}' if x else '-' for x in (row.before, row.dead)
        ]
        lines.append([*cells, *format_mean(row.scores50), *dead, str(row.diverged)])
    return format_table(head, lines)


def format_differences(rows: Sequence[Row], baseline: str) -> str:
    """Format differences to the baseline as a Markdown table, if there are any."""
    found = compare_with_baseline(rows, baseline)
    if not found:
        return ''
    several = len({row.length for row in rows}) > 1
    head = ['Norm', 'schedule', 'seeds', f'mAP minus that of {baseline}', '95 % CI']
    lines = [
        [
            row.norm,
            format_length(row.length) * several,
            str(pair.seeds),
            '-' if pair.mean is None else format_difference(pair.mean),
            '-' if p is None else format_interval(pair.low, pair.high),
            '-' if p is None else format_p(p),
        ]
        for row, pair, p in found
    ]
    return format_table([*head, 'p (Holm)'], lines) + '\n\n'


def _format_tuning(comparison: Comparison, tuning: Sequence[Row]) -> str:
    if not tuning:
        return ''
    choose = comparison.choose_lr
    lines = [
        [*cells, 'yes' if row.lr == choose(row.norm, row.length) else 'no']
        for row, cells in zip(tuning, _format_scores(tuning))
    ]
    held_out = comparison.held_out
    return f"""The learning rates were chosen by the mAP on held-out training
images ({held_out.images}, {held_out.share:.0%}). The final runs above trained
on all training images. The validation set had no part in the choice.

{format_table([*SCORES, 'chosen'], lines)}

"""


def _format_costs(costs: Costs) -> str:
    first = next(iter(costs))
    lines = [
        [
            norm,
            f'{1e3 * cost.step:.0f}',
            f'{cost.ratio:.2f}',
            f'{cost.stored:.1f}',
            '-' if cost.peak is None else f'{cost.peak:.0f}',
        ]
        for norm, cost in costs.items()
    ]
    head = ['Norm', 'step, ms', f'of {first}', 'stored, MiB', 'peak, MiB']
    return format_table(head, lines)


def _format_list(title: str, items: Sequence[str]) -> str:
    if not items:
        return ''
    return '\n'.join([title, '', *(f'- {item}' for item in items), '', ''])
