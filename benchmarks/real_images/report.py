"""Tables and figures of the studies, from their CSV files alone."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.shared.pages import write_sections
from mmpsbn.analysis.style import assign_colors, figure_file
from mmpsbn.compare.figures import draw_lrs
from mmpsbn.compare.report import (
    DIFFERENCES,
    Row,
    compare_with_baseline,
    describe_results,
    format_differences,
    format_rows,
    group_by_length,
    select_best,
)
from mmpsbn.statistics.tables import format_length, format_lr, format_table

from .results import Results
from .studies import STUDIES, Study, number_of_runs

COMPARED = ('MimicNorm',)  # With the others, next to the baseline.
README = Path(__file__).resolve().parent / 'README.md'


def write_report(results: dict[str, Results], folder: Path) -> Path:
    """Write the page and its figures into a folder, and return the page.

    Args:
        results (dict): The rows of each study.
        folder (Path): The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    finals = {
        name: rows
        for name, rows in (
            (name, results[name].finals(study.norms, study.untuned))
            for name, study in STUDIES.items()
        )
        if rows
    }
    for name in finals:
        tuning = results[name].tuning(STUDIES[name].norms)
        if tuning:
            runs = max(len(row.scores) for row in tuning)
            draw_lrs(
                group_by_length(tuning),
                str(folder / f'lrs-{name}.png'),
                f'{STUDIES[name].title}\nNEU-DET, held-out training images, '
                f'{runs} run{"s" * (runs > 1)} per point',
            )
    if finals:
        draw_differences(
            {STUDIES[name].title: rows for name, rows in finals.items()},
            folder / 'differences.png',
        )
    return write_sections(
        (
            _section(STUDIES[name], results[name], rows, name)
            for name, rows in finals.items()
        ),
        folder,
    )


def _section(study: Study, results: Results, rows: Sequence[Row], name: str) -> str:
    baseline = next(iter(study.norms.values()))[0]
    tuning = results.tuning(study.norms)
    own = results.outcomes()
    devices = ', '.join(sorted({row.device for row in own}))
    hours = sum(row.seconds for row in own) / 3600
    # Runs at a rate that is no longer chosen do not count.
    missing = number_of_runs(study) - sum(len(row.runs) for row in [*tuning, *rows])
    others = ''.join(
        f'Compared with {norm}, which the protocol did not plan:\n\n'
        f'{format_differences([row for row in rows if row.norm != baseline], norm)}'
        for norm in COMPARED
        if any(row.norm == norm for row in rows)
    )
    state = f' {missing} runs are missing.' if missing > 0 else ''
    return f"""### {study.title}

{describe_results(rows, baseline, tuning)}

{format_differences(rows, baseline)}{DIFFERENCES}{others}{format_rows(rows)}

mAP on the held-out training images, from which the learning rates were chosen:

{tuning_table(tuning)}

![mAP and dead channels by learning rate](lrs-{name}.png)

{len(own)} runs with {hours:.1f} hours in total (some in parallel), on:
{devices}.{state}
"""


def tuning_table(rows: Sequence[Row]) -> str:
    """mAP by normalization and learning rate; the best one is bold."""
    lrs = sorted({row.lr for row in rows})
    chosen = {(row.norm, row.length): row.lr for row in select_best(rows)}
    lines = []
    for norm, length in chosen:
        cells = []
        for lr in lrs:
            found = [
                row
                for row in rows
                if (row.norm, row.length, row.lr) == (norm, length, lr)
            ]
            cell = f'{found[0].mean:.3f}' if found else '-'
            best = chosen[norm, length] == lr
            cells.append(f'**{cell}**' if best else cell)
        lines.append([norm, format_length(length), *cells])
    return format_table(
        ['Norm', 'schedule', *(f'lr {format_lr(lr)}' for lr in lrs)], lines
    )


def draw_differences(studies: dict[str, Sequence[Row]], out: Path) -> None:
    """Draw each normalization's difference to the baseline, with intervals.

    Args:
        studies (dict): For each title the rows of the final runs. The first
            row is of the baseline.
        out (Path): The PNG to write.
    """
    found = {
        title: sorted(
            (
                one
                for one in compare_with_baseline(rows, rows[0].norm)
                if one.p is not None
            ),
            key=lambda one: -one.row.length,
        )
        for title, rows in studies.items()
    }
    found = {title: own for title, own in found.items() if own}
    if not found:
        return
    colors = assign_colors(row.norm for rows in studies.values() for row in rows)
    heights = [len(own) for own in found.values()]
    height = 0.8 + 0.8 * len(found) + 0.24 * sum(heights)
    with figure_file(str(out), 6.5, height) as figure:
        axes = figure.subplots(
            len(found), 1, sharex=True, squeeze=False, height_ratios=heights
        )
        for axis, (title, own) in zip(axes[:, 0], found.items()):
            for place, one in enumerate(own):
                color = colors[one.row.norm]
                axis.plot(
                    [one.paired.low, one.paired.high], [place] * 2, color=color, lw=2
                )
                axis.plot(
                    [one.paired.mean],
                    [place],
                    'o',
                    color=color,
                    ms=5,
                    mfc=color if one.significant else 'white',
                )
            axis.axvline(0, color='black', lw=0.8)
            lengths = len({one.row.length for one in own}) > 1
            axis.set_yticks(
                range(len(own)),
                [
                    one.row.norm
                    + f', {format_length(one.row.length)} schedule' * lengths
                    for one in own
                ],
            )
            axis.set_ylim(len(own) - 0.5, -0.5)
            axis.set_title(title, loc='left')
            axis.grid(False, axis='y')
        axes[-1, 0].set_xlabel(
            f'mAP minus that of {next(iter(colors))}: mean and 95 % confidence '
            'interval\n(filled circle: significant difference)'
        )
