"""Finetuning from a detector with BN, and where its filters collapse.

    python -m benchmarks.finetuning [--quick]

There are two tasks of tools/make_demo_data.py, the demo's, and half as many
other scenes, seen at 128 x 128 instead of 160 x 160. Each detector learns
the first with BN and continues on the second with frozen BN, BN, psBN, GN and
MimicNorm, at three learning rates, with three seeds. Then BN and psBN where
filters may collapse: at a higher learning rate, and from scratch with norm
layers in neck and head too, which bear more, with more weight decay, and
longer. Last, finetuning in parts of a batch, whose gradients are averaged
before a step: what each of several processes with so few images sees. Every
training belongs to a comparison as tools/compare_norms.py makes it.

The same command resumes after an interruption and repeats nothing. It writes
report.md with figures after each comparison, and into the folder of each
comparison its own report.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger

import mmpsbn.cli  # noqa: F401  First: it checks the stack.
from benchmarks.shared.tables import format_mean_and_spread
from mmpsbn.checkpoints.reading import find_latest
from mmpsbn.cli.arguments import add_cfg_options
from mmpsbn.cli.errors import exit_with_message, interrupt_on_signals
from mmpsbn.compare import NORMALIZATIONS, Comparison, replace_norm, run_comparison
from mmpsbn.compare.figures import draw_lrs
from mmpsbn.compare.placing import check_norms
from mmpsbn.compare.processes import divide_machine
from mmpsbn.compare.report import Row, describe_results, format_rows, make_rows
from mmpsbn.compare.session import estimate_remaining, load_costs
from mmpsbn.compare.tables import format_duration, format_table
from mmpsbn.config.data import check_data
from mmpsbn.config.reading import TRAINING_LOADERS, read_config
from mmpsbn.datasets import make_digits
from mmpsbn.errors import InputError
from mmpsbn.files import output_folder

from .demo_norms import CONFIGS

PARTS = {
    'finetuning': 'Finetuning',
    'collapse': 'Where collapse begins',
    'micro-batch': 'Few images at a time',
}
FINETUNED = ('BN', 'FrozenBN', 'psBN', 'GN', 'MimicNorm')
LRS = (0.25, 1, 4)  # Of the config's.
MICRO_BATCHES = (1, 2, 4)
MICRO_NORMS = ('BN', 'GN', 'MimicNorm')
EPOCHS = 4
SCALE = (128, 128)
BEGINS = 0.01  # The share of channels whose death counts as collapse.
TASKS = {'data/digits': dict(), 'data/digits-finetuning': dict(train=400, seed=1)}
# Scenes of both, and epochs on the first.
QUICK = dict(train=160, val=40)
QUICK_EPOCHS = 2
BN = dict(type='BN')
EVERYWHERE = {
    'faster-rcnn': {
        'model.neck.norm_cfg': BN,
        'model.roi_head.bbox_head.type': 'Shared4Conv1FCBBoxHead',
        'model.roi_head.bbox_head.conv_out_channels': 64,
        'model.roi_head.bbox_head.norm_cfg': BN,
    },
    'retinanet': {
        'model.neck.norm_cfg': BN,
        'model.bbox_head.type': 'RetinaSepBNHead',
        'model.bbox_head.num_ins': 4,
        'model.bbox_head.norm_cfg': BN,
    },
}


class Trainings(NamedTuple):
    """A comparison of the benchmark: what it varies, and what it sets."""

    title: str
    lrs: Sequence[float]
    """As multiples of the config's."""
    epochs: int = EPOCHS
    """Of a demo's detector; the config of another says it."""
    finetuned: bool = True
    options: dict = {}
    norms: Sequence[str] = ('BN', 'psBN')
    batch: int | None = None
    """Images at a time, of the config's batch."""


# Beside the rows of the part before.
FINETUNED_HIGH = Trainings('finetuned', (8,))
COLLAPSE = {
    detector: [
        FINETUNED_HIGH,
        Trainings(
            'from scratch, norm everywhere',
            (4, 16),
            2 * EPOCHS,
            False,
            EVERYWHERE[detector],
        ),
    ]
    for detector in CONFIGS
}
# The faster one.
COLLAPSE['retinanet'] += [
    Trainings(
        'the same, decay x 10',
        (4, 16),
        2 * EPOCHS,
        False,
        {**EVERYWHERE['retinanet'], 'optim_wrapper.optimizer.weight_decay': 1e-3},
    ),
    Trainings(
        'the same, twice as long', (4, 16), 4 * EPOCHS, False, EVERYWHERE['retinanet']
    ),
]
COLLAPSE_OF_CONFIG = [
    FINETUNED_HIGH,
    Trainings('from scratch', (1, 4, 16), finetuned=False),
]


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--detectors',
        nargs='+',
        default=list(CONFIGS),
        help=f'of {", ".join(CONFIGS)}, or config files',
    )
    parser.add_argument(
        '--data',
        nargs=2,
        metavar=('FIRST', 'SECOND'),
        help="folders of COCO2017's layout, to learn and to finetune on; "
        'generated by default',
    )
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS))
    parser.add_argument(
        '--norms',
        nargs='+',
        default=FINETUNED,
        metavar='NORM',
        help=f'of {", ".join(NORMALIZATIONS)}',
    )
    parser.add_argument(
        '--lrs',
        type=float,
        nargs='+',
        default=LRS,
        help="of finetuning, as multiples of the config's learning rate",
    )
    parser.add_argument('--seeds', type=int, default=3, help='how many')
    parser.add_argument(
        '--at-once',
        type=int,
        default=torch.cuda.device_count() or len(os.sched_getaffinity(0)),
        help='how many trainings side by side',
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help='few scenes, epochs and learning rates, one seed: it shows that '
        'all works, and no result',
    )
    parser.add_argument(
        '--out',
        type=Path,
        help='by default work_dirs/finetuning, and '
        'work_dirs/finetuning-quick with --quick',
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    check_norms(args.norms)
    if min(args.seeds, args.at_once, *args.lrs) <= 0:
        raise InputError('--seeds, --at-once and --lrs are above 0.')
    for name in args.detectors:
        if name not in CONFIGS and not os.path.isfile(name):
            raise InputError(
                f'--detectors {name} is none of '
                f'{", ".join(CONFIGS)}, and no config file.'
            )
    if args.quick:
        args.seeds = 1
    args.out = args.out or Path('work_dirs') / (
        'finetuning-quick' if args.quick else 'finetuning'
    )
    return args


def tasks_of(args) -> Sequence[str]:
    """The folders of both tasks, generated where they are not given."""
    if args.data:
        return args.data
    folders = []
    for folder, options in TASKS.items():
        if args.quick:
            folder, options = f'{folder}-quick', {**options, **QUICK}
        folders.append(folder)
        if not os.path.isdir(folder):
            make_digits(folder, **options)
    return folders


class Planned(NamedTuple):
    """A comparison of the second task."""

    part: str
    detector: str
    title: str
    comparison: Comparison


def comparison_of(
    args, detector: str, part: str, trainings: Trainings, seeds: int, options: dict
) -> Comparison:
    """A comparison, on the task that MMDET_DATASETS names."""
    cfg = read_config(CONFIGS.get(detector, detector), options)
    check_data(cfg, TRAINING_LOADERS)
    if trainings.batch:
        in_parts(cfg, trainings.batch)
    lr = cfg.optim_wrapper.optimizer.lr
    name = trainings.title.replace(',', '').replace(' ', '-')
    return Comparison(
        cfg,
        {norm: replace_norm(cfg, norm) for norm in trainings.norms},
        [lr * x for x in trainings.lrs],
        range(seeds),
        args.out / Path(detector).stem / part / name,
    )


def in_parts(cfg: Config, images: int) -> None:
    """Let each step of a config see its batch so many images at a time.

    The gradients of the parts are averaged before the step, as those of
    several processes are.
    """
    if 'max_epochs' not in cfg.train_cfg:
        raise InputError(
            '--parts micro-batch takes configs that count '
            'epochs; leave it out for this one.'
        )
    parts = cfg.train_dataloader.batch_size // images
    cfg.train_dataloader.batch_size = images
    cfg.optim_wrapper.accumulative_counts = parts
    for scheduler in cfg.param_scheduler:
        if not scheduler.get('by_epoch', True):
            scheduler.end *= parts


def schedule(epochs: int) -> dict:
    """Settings of the demo's configs; mAP is measured at the end."""
    return {
        'train_cfg.max_epochs': epochs,
        'train_cfg.val_interval': epochs,
        'param_scheduler.1.T_max': epochs,
    }


def second_task(args, trainings: Trainings) -> dict:
    """Settings of the demo's configs for the second task."""
    return {
        **schedule(1 if args.quick else trainings.epochs),
        'param_scheduler.0.end': 10 if args.quick else 50,
        'train_dataloader.dataset.pipeline.2.scale': SCALE,
        'val_dataloader.dataset.pipeline.1.scale': SCALE,
    }


def pretrained(args, detector: str, command: str) -> tuple[Row, str]:
    """The training on the first task, and its checkpoint."""
    options = schedule(QUICK_EPOCHS) if args.quick and detector in CONFIGS else {}
    comparison = comparison_of(
        args,
        detector,
        'pretraining',
        Trainings('pretrained', (1,), norms=('BN',)),
        1,
        options,
    )
    print(f'\n{detector} on the first task, with BN:')
    comparison.write()
    run_comparison(
        comparison,
        load_costs(comparison, rounds=1),
        environments=divide_machine(1, 1),
        command=command,
    )
    folder = comparison.folder(comparison.runs[0])
    return make_rows(comparison)[0], find_latest(str(folder)).path


def planned(args, part: str, detector: str, checkpoint: str) -> list[Planned]:
    """The comparisons of a part, for a detector pretrained with BN."""
    if part == 'finetuning':
        every = [Trainings('finetuned', args.lrs, norms=args.norms)]
    elif part == 'collapse':
        every = COLLAPSE.get(detector, COLLAPSE_OF_CONFIG)
    else:
        whole = read_config(
            CONFIGS.get(detector, detector), args.cfg_options
        ).train_dataloader.batch_size
        every = [
            Trainings(f'{images} at a time', (1,), norms=MICRO_NORMS, batch=images)
            for images in MICRO_BATCHES
            if images < whole and whole % images == 0
        ]
    found = []
    for trainings in every:
        if args.quick:
            trainings = trainings._replace(lrs=trainings.lrs[-1:])
        options = second_task(args, trainings) if detector in CONFIGS else {}
        if trainings.finetuned:
            options['load_from'] = checkpoint
        options.update({**trainings.options, **(args.cfg_options or {})})
        found.append(
            Planned(
                part,
                detector,
                trainings.title,
                comparison_of(args, detector, part, trainings, args.seeds, options),
            )
        )
    return found


def begins(rows: Sequence[Row], norm: str) -> str:
    """From which learning rate on channels of a normalization collapse."""
    own = sorted(
        (row for row in rows if row.norm == norm and row.well), key=lambda row: row.lr
    )
    if not own:
        return f'{norm}: every run diverged'
    for row in own:
        died = mean(row.dead) - mean(row.before) if row.dead else 0
        if died > BEGINS:
            return (
                f'{norm}: from lr {row.lr:g} on, where {died:.1%} of the '
                'channels have died'
            )
    return f'{norm}: not up to lr {own[-1].lr:g}'


def by_batch(panels: dict[str, list[Row]], whole: Sequence[Row]) -> str:
    """mAP, and its spread, by images at a time, in Markdown.

    Args:
        panels (dict): For each number of images its rows.
        whole (list[Row]): Of finetuning with whole batches.
    """
    seen = {(row.norm, row.lr) for rows in panels.values() for row in rows}
    same = [row for row in whole if (row.norm, row.lr) in seen]
    columns = {**panels, **({'whole batches': same} if same else {})}
    cells = {
        (row.norm, title): '{} ({})'.format(*format_mean_and_spread(row.scores))
        for title, rows in columns.items()
        for row in rows
    }
    return format_table(
        ['Norm', *columns],
        [
            [norm, *(cells.get((norm, title), '-') for title in columns)]
            for norm in dict.fromkeys(norm for norm, _ in cells)
        ],
    )


def write_report(
    args, first: dict[str, Row], plan: Sequence[Planned], command: str
) -> None:
    """Write report.md and figures, of what has ended."""
    text = ['# Finetuning, and filter collapse in detection']
    text += [
        f'{detector}, on the first task with BN: mAP {row.mean:.3f} at lr {row.lr:g}.'
        for detector, row in first.items()
    ]
    ended: dict[tuple[str, str], dict[str, list[Row]]] = {}
    baselines = {}
    for one in plan:
        baselines[one.part, one.detector, one.title] = next(iter(one.comparison.cfgs))
        rows = make_rows(one.comparison)
        if rows:
            ended.setdefault((one.part, one.detector), {})[one.title] = rows
    with output_folder(str(args.out)) as folder:
        for (part, detector), panels in ended.items():
            text.append(f'## {PARTS[part]}: {detector}')
            finetuned = ended.get(('finetuning', detector), {}).get('finetuned', [])
            if part == 'micro-batch':
                text.append(by_batch(panels, finetuned))
            if part == 'collapse' and 'finetuned' in panels:
                norms = {row.norm for row in panels['finetuned']}
                panels['finetuned'] = sorted(
                    [row for row in finetuned if row.norm in norms]
                    + panels['finetuned'],
                    key=lambda row: (row.norm, row.lr),
                )
            for title, rows in panels.items():
                told = describe_results(rows, baselines[part, detector, title])
                if part == 'collapse':
                    told = '\n'.join(
                        f'- {begins(rows, norm)}.'
                        for norm in dict.fromkeys(row.norm for row in rows)
                    )
                text += [f'### {title.capitalize()}', told, format_rows(rows)]
            figure = f'{part}-{Path(detector).stem}.png'
            draw_lrs(panels, str(Path(folder) / figure))
            text.append(f'![mAP and dead channels]({figure})')
        text.append(f'```shell\n{command}\n```')
        (Path(folder) / 'report.md').write_text(
            '\n\n'.join(text) + '\n', encoding='utf-8'
        )


def main():
    args = parse_args()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    command = shlex.join(['python', '-m', 'benchmarks.finetuning', *sys.argv[1:]])
    environments = divide_machine(args.at_once, 1)
    os.environ['MMDET_DATASETS'], second = tasks_of(args)
    first, checkpoints = {}, {}
    for detector in args.detectors:
        first[detector], checkpoints[detector] = pretrained(args, detector, command)
    os.environ['MMDET_DATASETS'] = second
    plan = [
        one
        for part in args.parts
        for detector in args.detectors
        for one in planned(args, part, detector, checkpoints[detector])
    ]
    costs = []
    for one in plan:
        one.comparison.write()
        costs.append(load_costs(one.comparison, rounds=1))
    failed = 0
    for number, (one, cost) in enumerate(zip(plan, costs)):
        seconds = sum(
            estimate_remaining(later.comparison, its, args.at_once)
            for later, its in zip(plan[number:], costs[number:])
        )
        print(
            f'\n[{number + 1}/{len(plan)}] {one.detector}, {one.title}; '
            f'with all that follows about {format_duration(seconds)}:',
            flush=True,
        )
        try:
            run_comparison(
                one.comparison, cost, environments=environments, command=command
            )
        except InputError as error:
            if not one.comparison.failures:
                raise
            print(error)
            failed += len(one.comparison.failures)
        write_report(args, first, plan, command)
    print(f'\nReport: {args.out / "report.md"}')
    if failed:
        raise InputError(f'{failed} runs failed; the same command tries them again.')


if __name__ == '__main__':
    interrupt_on_signals()
    with exit_with_message('the same command resumes from here'):
        main()
