"""Normalizations of the demo's detectors compared, and MimicNorm's parts.

    python -m benchmarks.demo_norms [--detector retinanet]
        [--norms BN MimicNorm] [--seeds 3]

Beside the normalizations of tools/compare_norms.py there are MimicNorm without
one or both of its operations and with other settings, and RetinaNet with BN in
its head, shared by the pyramid levels or of each its own. Each trains from
scratch on the demo's task and is evaluated at the end; folder, report and
going on after an interruption are those of tools/compare_norms.py.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import MMLogger

import mmpsbn.cli  # noqa: F401  First: it checks the stack.
from mmpsbn.cli.arguments import add_cfg_options
from mmpsbn.cli.errors import exit_with_message, interrupt_on_signals
from mmpsbn.compare import Comparison, replace_norm, run_comparison
from mmpsbn.compare.processes import divide_machine
from mmpsbn.compare.session import load_costs
from mmpsbn.config.reading import read_config
from mmpsbn.datasets import make_digits

CONFIGS = {
    name: str(
        Path(__file__).resolve().parent.parent
        / 'configs'
        / 'demo'
        / f'{name}_r18-half_fpn_psbn_digits.py'
    )
    for name in ('faster-rcnn', 'retinanet')
}
ROI = 'model.roi_head.bbox_head.cls_predictor_cfg'
RPN = 'model.rpn_head'
RETINA = 'model.bbox_head'
# Parts of MimicNorm that a row is without.
NO_MEAN = {'model.backbone.conv_cfg.center': False}
ONE_LAST_BN = {f'{RPN}.type': 'RPNHead'}
NO_LAST_BN = {**ONE_LAST_BN, ROI: dict(type='Linear')}
NO_AFFINE = {f'{ROI}.affine': False}
NO_LAST_BN_OF_RETINA = {f'{RETINA}.type': 'RetinaHead'}
BN = dict(type='BN')
# For each row a normalization, and settings of the config with it.
STOCK = {norm: (norm, {}) for norm in ('BN', 'psBN', 'GN')}
ROWS = {
    'faster-rcnn': {
        **STOCK,
        'none': ('MimicNorm', {**NO_MEAN, **NO_LAST_BN}),
        'weight mean': ('MimicNorm', NO_LAST_BN),
        'last BN': ('MimicNorm', {**NO_MEAN, **ONE_LAST_BN}),
        'MimicNorm': ('MimicNorm', {}),
        'MimicNorm, RoI head alone': ('MimicNorm', ONE_LAST_BN),
        'MimicNorm, RoI head alone, affine=False': (
            'MimicNorm',
            {**ONE_LAST_BN, **NO_AFFINE},
        ),
        'MimicNorm, affine=False': ('MimicNorm', NO_AFFINE),
        **{
            f'MimicNorm, momentum={momentum}': (
                'MimicNorm',
                {
                    f'{ROI}.momentum': momentum,
                    f'{RPN}.last_bn': dict(momentum=momentum),
                },
            )
            for momentum in (0.01, 0.3)
        },
    },
    'retinanet': {
        **STOCK,
        'none': ('MimicNorm', {**NO_MEAN, **NO_LAST_BN_OF_RETINA}),
        'weight mean': ('MimicNorm', NO_LAST_BN_OF_RETINA),
        'last BN': ('MimicNorm', NO_MEAN),
        'MimicNorm': ('MimicNorm', {}),
        'BN, shared in the head': ('BN', {f'{RETINA}.norm_cfg': BN}),
        'BN, separate in the head': (
            'BN',
            {
                f'{RETINA}.type': 'RetinaSepBNHead',
                f'{RETINA}.num_ins': 4,
                f'{RETINA}.norm_cfg': BN,
            },
        ),
    },
}


def config_with(cfg: Config, detector: str, row: str) -> Config:
    """The demo's config for a row of the table."""
    norm, settings = ROWS[detector][row]
    cfg = replace_norm(cfg, norm)
    cfg.merge_from_dict(settings)
    return cfg


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--detector', choices=CONFIGS, default='faster-rcnn')
    parser.add_argument(
        '--norms',
        nargs='+',
        metavar='NORM',
        default=['BN', 'psBN', 'GN', 'MimicNorm'],
        help='; '.join(
            f'of {detector}: {", ".join(map(repr, rows))}'
            for detector, rows in ROWS.items()
        ),
    )
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--out', help='by default work_dirs/demo_norms_...')
    parser.add_argument('--at-once', type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument('--rounds', type=int, default=30, help='of timing a step')
    add_cfg_options(parser)
    args = parser.parse_args()
    if min(args.seeds, args.at_once, args.rounds) < 1:
        parser.error('--seeds, --at-once and --rounds are at least 1')
    if not set(args.norms) <= set(ROWS[args.detector]):
        parser.error(
            f'--norms: {args.detector} has the rows '
            f'{", ".join(map(repr, ROWS[args.detector]))}'
        )
    MMLogger.get_instance('mmengine', log_level='ERROR')
    if not os.path.isdir('data/digits'):
        make_digits('data/digits')
    cfg = read_config(CONFIGS[args.detector], args.cfg_options)
    cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs
    comparison = Comparison(
        cfg,
        {row: config_with(cfg, args.detector, row) for row in args.norms},
        [],
        range(args.seeds),
        args.out or f'work_dirs/demo_norms_{args.detector}',
    )
    comparison.write()
    command = shlex.join(['python', '-m', 'benchmarks.demo_norms', *sys.argv[1:]])
    run_comparison(
        comparison,
        load_costs(comparison, args.rounds),
        environments=divide_machine(args.at_once, 1),
        command=command,
    )


if __name__ == '__main__':
    interrupt_on_signals()
    with exit_with_message('the same command resumes from here'):
        main()
