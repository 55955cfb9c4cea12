"""Normalizations compared on the demo's task, over seeds.

    python benchmarks/demo_norms.py [--detector retinanet]
        [--norms BN MimicNorm] [--seeds 0 1 2]

Trains the demo's Faster R-CNN or RetinaNet with each normalization and seed by
tools/train.py, on one thread each, as many at a time as there are cores, and
prints a table: mean mAP and mAP50 and their spread, largest minus smallest;
what autograd saves in a step, and the time of a step, measured side by side
as in benchmarks/memory.py. Runs that are finished are not repeated, so that
the same command goes on after an interruption.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from memory import Detector, side_by_side
from mmdet.utils import register_all_modules
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger

from mmpsbn.analysis import saved_bytes

CONFIG = 'configs/demo/{}_r18-half_fpn_psbn_digits.py'
# What takes the normalization, and the settings of the last BN.
BODIES = {
    'faster-rcnn': ('model.backbone', ),
    'retinanet': ('model.backbone', 'model.bbox_head'),
}
ROI = 'model.roi_head.bbox_head.cls_predictor_cfg'
RPN = 'model.rpn_head'
LAST_BN = {
    'faster-rcnn': (f'{ROI}.type=LastBNLinear', ),
    'retinanet': ('model.bbox_head.type=LastBNRetinaHead', ),
}
# Of NonFiniteHook; such a run counts with mAP 0.
DIVERGED = 'the gradients are not finite'
# Row of the table: settings over the psBN config, for each body.
PLAIN = ('norm_cfg.type=MimicNorm', 'conv_cfg.type=MimicConv',
         'conv_cfg.centre=False')
CENTRED = PLAIN[:2]
NORMS = {
    'BN': ('norm_cfg.type=BN', ),
    'psBN': (),
    'GN': ('norm_cfg.type=GN', 'norm_cfg.num_groups=8'),
    'none': PLAIN,
    'weight mean': CENTRED,
    'last BN': PLAIN,
    'MimicNorm': CENTRED,
}
# How the last BN of Faster R-CNN may be set, beside its defaults.
VARIANTS = {
    'MimicNorm, affine=False': (f'{ROI}.affine=False', ),
    'MimicNorm, RPN too': (f'{RPN}.type=LastBNRPNHead', ),
    'MimicNorm, RPN too, affine=False': (f'{RPN}.type=LastBNRPNHead',
                                         f'{ROI}.affine=False'),
}
for momentum in (0.01, 0.3):
    VARIANTS[f'MimicNorm, RPN too, momentum={momentum}'] = (
        f'{RPN}.type=LastBNRPNHead', f'{ROI}.momentum={momentum}',
        f'{RPN}.last_bn.momentum={momentum}')


def settings(detector, norm):
    """What --cfg-options takes for a row of the table."""
    row = norm.partition(',')[0]
    options = [f'{body}.{option}' for body in BODIES[detector]
               for option in NORMS[row]]
    if row in ('last BN', 'MimicNorm'):
        options.extend(LAST_BN[detector])
    return [*options, *VARIANTS.get(norm, ())]


def folder_of(detector, norm, seed, out):
    return out / f'{detector}_{norm}_{seed}'.replace(', ', '-').replace(
        ' ', '-')


def train(detector, norm, seed, options, out):
    """Metrics of a run; those of an earlier one where it has ended."""
    folder = folder_of(detector, norm, seed, out)
    done = folder / 'metrics.json'
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / 'output.txt', 'w') as output:
            status = subprocess.run([
                sys.executable, 'tools/train.py',
                CONFIG.format(detector), '--work-dir',
                str(folder), '--resume', '--cfg-options',
                f'randomness.seed={seed}', 'train_cfg.val_interval=100',
                'default_hooks.checkpoint.max_keep_ckpts=1',
                *settings(detector, norm), *options
            ],
                                    env={**os.environ, 'OMP_NUM_THREADS': '1'},
                                    stdout=output,
                                    stderr=subprocess.STDOUT).returncode
        if status and DIVERGED in (folder / 'output.txt').read_text():
            done.write_text(json.dumps(dict(mAP=0., mAP_50=0.)))
        elif status:
            sys.exit(f'{norm}, seed {seed}: tools/train.py ended with status '
                     f'{status}, see {folder}/output.txt')
        else:
            done.write_text(json.dumps(last_metrics(folder)))
    metrics = json.loads(done.read_text())
    print(f'{norm}, seed {seed}: mAP {metrics["mAP"]:.3f}, '
          f'mAP50 {metrics["mAP_50"]:.3f}', flush=True)
    return metrics


def last_metrics(folder):
    """mAP and mAP50 of the last validation; 0 where nothing was detected."""
    newest = max(folder.glob('*/vis_data/scalars.json'), key=os.path.getmtime)
    records = [json.loads(line) for line in newest.read_text().splitlines()]
    return {
        name: records[-1].get(f'coco/bbox_{name}', 0)
        for name in ('mAP', 'mAP_50')
    }


def costs(detector, norms, rounds):
    """What autograd saves, in MiB, and the time of a step, as ratios."""
    register_all_modules()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='*', action=DictAction)
    models, saved = {}, {}
    for norm in norms:
        cfg = Config.fromfile(CONFIG.format(detector))
        options = parser.parse_args(['--options', *settings(detector, norm)])
        cfg.merge_from_dict(options.options or {})
        models[norm] = Detector(cfg, batch=8, classes=10)
        inputs = models[norm].train().inputs((160, 160))
        saved[norm] = saved_bytes(lambda: models[norm].loss(inputs),
                                  models[norm].parameters()) / 2**20
    return saved, side_by_side(models, (160, 160), rounds, training=True)


def spread(values):
    """Mean, and largest minus smallest."""
    return (f'{statistics.mean(values):.3f} | '
            f'{max(values) - min(values):.3f}')


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--detector', choices=BODIES, default='faster-rcnn')
    parser.add_argument(
        '--norms',
        nargs='+',
        choices=[*NORMS, *VARIANTS],
        default=list(NORMS))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--out', type=Path, default='work_dirs/demo_norms')
    parser.add_argument('--jobs', type=int, default=os.cpu_count())
    parser.add_argument(
        '--rounds', type=int, default=30, help='of timing a step')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], help='for every run')
    args = parser.parse_args()
    if args.detector != 'faster-rcnn' and set(args.norms) & set(VARIANTS):
        parser.error(f'only faster-rcnn has the rows {", ".join(VARIANTS)}')
    if not os.path.isdir('data/digits'):
        subprocess.run([
            sys.executable, 'tools/make_demo_data.py', '--out', 'data/digits'
        ], check=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {(norm, seed): pool.submit(train, args.detector, norm, seed,
                                          args.cfg_options, args.out)
                for seed in args.seeds for norm in args.norms}
    metrics = {key: run.result() for key, run in runs.items()}
    saved, steps = costs(args.detector, args.norms, args.rounds)
    print('\n| Norm | mAP | spread | mAP50 | spread | saved, MiB | step, of '
          f'{args.norms[0]} |\n|---|---|---|---|---|---|---|')
    for norm in args.norms:
        own = [metrics[norm, seed] for seed in args.seeds]
        print(f'| {norm} | {spread([m["mAP"] for m in own])} | '
              f'{spread([m["mAP_50"] for m in own])} | {saved[norm]:.1f} | '
              f'{steps[norm]:.2f} |')


if __name__ == '__main__':
    main()
