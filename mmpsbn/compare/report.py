"""What a comparison has found: tables, figures, and which to choose."""

import base64
import statistics
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence

from markdown_it import MarkdownIt

from mmpsbn.engine.filter_collapse_hook import shares
from mmpsbn.engine.whole_files import whole_folder
from .costs import Cost, warnings_of
from .figures import (draw_collapse, draw_costs, draw_curves, draw_lrs,
                      draw_scores)
from .runs import Comparison, Run
from .tables import in_digits, markdown, mean_and_spread

PAGE = 'report.html'
LAYOUT = '''<!doctype html>
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
'''


class Row(NamedTuple):
    """A normalization at a learning rate, over the seeds that have ended."""

    norm: str
    lr: float
    runs: List[Run]
    well: List[Run]
    """Those that have not diverged."""
    scores: List[float]
    """mAP of each run; 0 where nothing was detected, or it diverged."""
    scores50: List[float]
    """mAP50 of each run; empty if the config does not measure it."""
    before: List[float]
    """Share of channels that are dead in the first steps of each run that has
    not diverged, sums left out."""
    dead: List[float]
    """And in the last steps."""

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores)


def rows_of(comparison: Comparison) -> List[Row]:
    """The rows of a comparison's table, without those of no ended run."""
    groups: Dict[tuple, List[Run]] = {}
    for run in comparison.runs:
        if comparison.result(run):
            groups.setdefault((run.norm, run.lr), []).append(run)
    rows = []
    for (norm, lr), runs in groups.items():
        results = [comparison.result(run) for run in runs]
        scores = [[result['metrics'].get(name, 0) for result in results]
                  for name in comparison.scores]
        well = [run for run, result in zip(runs, results)
                if not result.get('diverged')]
        histories = list(filter(None, map(comparison.history, well)))
        rows.append(
            Row(norm, lr, runs, well, scores[0],
                scores[1] if scores[1:] else [],
                *([shares(history[at]).get('dead', 0) for history in histories]
                  for at in (0, -1))))
    order = list(comparison.cfgs)
    return sorted(rows, key=lambda row: (order.index(row.norm), row.lr))


def best_rows(rows: Sequence[Row]) -> List[Row]:
    """Of each normalization the learning rate of the highest mean mAP."""
    best: Dict[str, Row] = {}
    for row in rows:
        if row.norm not in best or row.mean > best[row.norm].mean:
            best[row.norm] = row
    return list(best.values())


def verdict(rows: Sequence[Row]) -> str:
    """Say which normalization these runs speak for, and how clearly."""
    best = best_rows(rows)
    first, *others = sorted(best, key=lambda row: -row.mean)
    if not first.mean:
        return 'No run detected anything: train longer, or at another lr.'
    text = (f'**{first.norm}** has the highest mean mAP, {first.mean:.3f} at '
            f'lr {in_digits(first.lr)}, each normalization taken at its best '
            'lr.')
    single = [row.norm for row in best if len(row.scores) < 2]
    close = [row.norm for row in others
             if max(row.scores) >= min(first.scores)]
    if single:
        text += (' One seed tells no difference from chance '
                 f'({", ".join(single)}).')
    elif close:
        text += (f' Seeds of {", ".join(close)} reach into its range: these '
                 'runs do not tell them apart.')
    elif others:
        text += ' No seed of another reaches its lowest.'
    return ' '.join([text, *_inequalities(rows, best)])


def _inequalities(rows: Sequence[Row], best: Sequence[Row]) -> List[str]:
    """Say where some normalizations had more trials than others."""
    seeds = {row.norm: len(row.scores) for row in best}
    lrs: Dict[str, List[str]] = {}
    for row in rows:
        lrs.setdefault(row.norm, []).append(in_digits(row.lr))
    found = []
    if len(set(seeds.values())) > 1:
        numbers = ', '.join(f'{norm} {n}' for norm, n in seeds.items())
        found.append(f'The numbers of seeds differ ({numbers}): run the '
                     'missing seeds before comparing the means.')
    if len(set(map(tuple, lrs.values()))) > 1:
        tried = '; '.join(f'{norm} {", ".join(own)}'
                          for norm, own in lrs.items())
        found.append(f'The learning rates differ ({tried}): the best of more '
                     'rates is higher by chance alone.')
    return found


def write_report(comparison: Comparison, costs: Dict[str, Cost],
                 command: str) -> Optional[Path]:
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
    rows = rows_of(comparison)
    if not rows:
        return None
    with whole_folder(str(comparison.work_dir)) as folder:
        _write(comparison, rows, costs, command, Path(folder))
    return comparison.work_dir / PAGE


def _write(comparison: Comparison, rows: Sequence[Row],
           costs: Dict[str, Cost], command: str, out: Path) -> None:
    best = [row for row in best_rows(rows) if row.well]
    figures = {
        'scores.png': 'mAP of every seed, and its mean (bar)',
        'curves.png': 'mAP while training: mean, and range over the seeds',
        'collapse.png': 'Dead channels while training: mean, and range',
        'costs.png': 'What a training step costs',
    }
    draw_scores(rows, str(out / 'scores.png'))
    if len({row.lr for row in rows}) > 1:
        figures = {'lrs.png': 'By learning rate: mean, and range of the seeds',
                   **figures}
        draw_lrs({'': rows}, str(out / 'lrs.png'))
    draw_curves({
        row.norm: [
            comparison.curve(run, comparison.scores[0]) for run in row.well
        ]
        for row in best
    }, comparison.length.unit, str(out / 'curves.png'))
    histories = {
        row.norm: [{
            line['iter']: 100 * shares(line).get('dead', 0)
            for line in comparison.history(run)
        } for run in row.well]
        for row in best
    }
    draw_collapse(histories, str(out / 'collapse.png'))
    draw_costs({norm: costs[norm] for norm in comparison.cfgs},
               str(out / 'costs.png'))
    title = 'Normalizations compared'
    pictures = '\n\n'.join(f'![{text}]({name})\n\n*{text}.*'
                           for name, text in figures.items())
    text = f'''# {title}

{verdict(rows)}

{table(rows)}

Spread is the largest minus the smallest of the seeds. Dead is the mean share
of the channels before a ReLU that no image of the last training steps opened,
dead before that of the first steps; residual sums are left out. A run that
diverged has mAP 0, and its channels are not counted.

{_cost_table(comparison, costs)}

Time of a training step on one batch, without loading it, side by side; saved
is what autograd keeps of its forward.

{pictures}

{_list('Without a result:', _missing(comparison))}\
{_list('Remarks:', comparison.remarks())}\
{_list('Beware:', warnings_of(costs))}```shell
{command}
```
'''
    (out / 'report.md').write_text(text, encoding='utf-8')
    body = MarkdownIt('commonmark').enable('table').render(text)
    for name in figures:
        data = base64.b64encode((out / name).read_bytes()).decode()
        body = body.replace(f'src="{name}"',
                            f'src="data:image/png;base64,{data}"')
    (out / PAGE).write_text(
        LAYOUT.format(title=title, body=body), encoding='utf-8')


def table(rows: Sequence[Row]) -> str:
    """mAP and dead channels of some rows, in Markdown."""
    return markdown([
        'Norm', 'lr', 'seeds', 'mAP', 'spread', 'mAP50', 'spread',
        'dead before', 'dead', 'diverged'
    ], [[
        row.norm, in_digits(row.lr),
        str(len(row.runs)), *mean_and_spread(row.scores),
        *mean_and_spread(row.scores50),
        *(f'{statistics.mean(shares):.2%}' if shares else '-'
          for shares in (row.before, row.dead)),
        str(len(row.runs) - len(row.well))
    ] for row in rows])


def _cost_table(comparison: Comparison, costs: Dict[str, Cost]) -> str:
    first = next(iter(comparison.cfgs))
    return markdown([
        'Norm', 'step, ms', f'of {first}', 'saved, MiB', 'peak, MiB'
    ], [[
        norm, f'{1e3 * cost.step:.0f}', f'{cost.ratio:.2f}',
        f'{cost.saved:.1f}', '-' if cost.peak is None else f'{cost.peak:.0f}'
    ] for norm, cost in costs.items() if norm in comparison.cfgs])


def _missing(comparison: Comparison) -> List[str]:
    return [
        f'{run}: {comparison.failures.get(run, "has not ended")}'
        for run in comparison.runs if not comparison.result(run)
    ]


def _list(title: str, items: Sequence[str]) -> str:
    if not items:
        return ''
    return '\n'.join([title, '', *(f'- {item}' for item in items), '', ''])
