"""Normalizations of the demo's detectors compared, and MimicNorm's parts.

    python -m benchmarks.demo_norms [--detector retinanet]
        [--norms BN MimicNorm] [--seeds 3]

Beside the normalizations of tools/compare_norms.py there are MimicNorm without
one or both of its operations and with other settings. Each trains from
scratch on the demo's task and is evaluated at the end; folder, report and
going on after an interruption are those of tools/compare_norms.py.
"""

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Dict

import mmpsbn  # noqa: F401  First: it checks the stack.

from mmengine.config import Config
from mmengine.logging import MMLogger

from mmpsbn.compare import Comparison, carry_out, with_norm
from mmpsbn.compare.runs import shares_of_machine
from mmpsbn.compare.session import costs_of
from mmpsbn.datasets import make_digits
from mmpsbn.engine.cli import add_cfg_options, told_to_the_user
from mmpsbn.engine.config import read_config

CONFIGS = {
    name: str(Path(__file__).resolve().parent.parent / 'configs' / 'demo' /
              f'{name}_r18-half_fpn_psbn_digits.py')
    for name in ('faster-rcnn', 'retinanet')
}
STOCK = ('BN', 'psBN', 'GN')
ROI = 'model.roi_head.bbox_head.cls_predictor_cfg'
RPN = 'model.rpn_head'
# Settings that make a row of MimicNorm, which has all of it.
ONE_LAST_BN = {f'{RPN}.type': 'RPNHead'}
NO_AFFINE = {f'{ROI}.affine': False}
PARTS = {
    'faster-rcnn': dict(
        weight_mean={'model.backbone.conv_cfg.centre': False},
        last_bn={**ONE_LAST_BN, ROI: dict(type='Linear')}),
    'retinanet': dict(
        weight_mean={'model.backbone.conv_cfg.centre': False,
                     'model.bbox_head.conv_cfg.centre': False},
        last_bn={'model.bbox_head.type': 'RetinaHead'}),
}
VARIANTS = {
    'MimicNorm, RoI head alone': ONE_LAST_BN,
    'MimicNorm, RoI head alone, affine=False': {**ONE_LAST_BN, **NO_AFFINE},
    'MimicNorm, affine=False': NO_AFFINE,
    **{f'MimicNorm, momentum={momentum}': {
        f'{ROI}.momentum': momentum,
        f'{RPN}.last_bn': dict(momentum=momentum)
    } for momentum in (0.01, 0.3)}
}


def variants_of(detector: str) -> Dict[str, dict]:
    """Settings over MimicNorm, for each row that is made of it."""
    parts = PARTS[detector]
    # One last BN, as in the paper, where one operation is alone.
    one = ONE_LAST_BN if detector == 'faster-rcnn' else {}
    return {
        'none': {**parts['weight_mean'], **parts['last_bn']},
        'weight mean': parts['last_bn'],
        'last BN': {**parts['weight_mean'], **one},
        'MimicNorm': {},
        **(VARIANTS if detector == 'faster-rcnn' else {}),
    }


def config_with(cfg: Config, detector: str, row: str) -> Config:
    """The demo's config for a row of the table."""
    if row in STOCK:
        return with_norm(cfg, row)
    cfg = with_norm(cfg, 'MimicNorm')
    cfg.merge_from_dict(variants_of(detector)[row])
    return cfg


def main():
    every = [*STOCK, *variants_of('faster-rcnn')]
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--detector', choices=CONFIGS, default='faster-rcnn')
    parser.add_argument('--norms', nargs='+', choices=every, metavar='NORM',
                        default=[*STOCK, 'MimicNorm'],
                        help=f'of {"; ".join(every)}')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--out', help='by default work_dirs/demo_norms_...')
    parser.add_argument('--at-once', type=int,
                        default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        '--rounds', type=int, default=30, help='of timing a step')
    add_cfg_options(parser)
    args = parser.parse_args()
    rows = [*STOCK, *variants_of(args.detector)]
    if not set(args.norms) <= set(rows):
        parser.error(f'{args.detector} has the rows {"; ".join(rows)}')
    MMLogger.get_instance('mmengine', log_level='ERROR')
    if not os.path.isdir('data/digits'):
        make_digits('data/digits')
    cfg = read_config(CONFIGS[args.detector], args.cfg_options)
    cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs
    comparison = Comparison(
        cfg, {row: config_with(cfg, args.detector, row) for row in args.norms},
        [], range(args.seeds),
        args.out or f'work_dirs/demo_norms_{args.detector}')
    comparison.write()
    command = shlex.join(
        ['python', '-m', 'benchmarks.demo_norms', *sys.argv[1:]])
    carry_out(comparison, costs_of(comparison, args.rounds),
              shares_of_machine(args.at_once, 1), command)


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with told_to_the_user('the same command goes on from here'):
        main()
