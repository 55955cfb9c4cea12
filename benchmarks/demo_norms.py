"""Normalizations compared on the demo's task, over seeds.

    python benchmarks/demo_norms.py [--norms BN MimicNorm] [--seeds 0 1 2]

Trains the demo's Faster R-CNN with each normalization and seed by
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

CONFIG = 'configs/demo/faster-rcnn_r18-half_fpn_psbn_digits.py'
NORM = 'model.backbone.norm_cfg'
CONV = 'model.backbone.conv_cfg'
LAST = 'model.roi_head.bbox_head.cls_predictor_cfg'
PLAIN = (f'{NORM}.type=MimicNorm', f'{CONV}.type=MimicConv',
         f'{CONV}.centre=False')
CENTRED = PLAIN[:2]
LAST_BN = (f'{LAST}.type=LastBNLinear', )
# Row of the table: settings over the psBN config.
NORMS = {
    'BN': (f'{NORM}.type=BN', ),
    'psBN': (),
    'GN': (f'{NORM}.type=GN', f'{NORM}.num_groups=8'),
    'none': PLAIN,
    'weight mean': CENTRED,
    'last BN': (*PLAIN, *LAST_BN),
    'MimicNorm': (*CENTRED, *LAST_BN),
}
# How the last BN may be set, beside its defaults.
VARIANTS = {
    'MimicNorm, affine=False': (f'{LAST}.affine=False', ),
    'MimicNorm, RPN too': ('model.rpn_head.type=LastBNRPNHead', ),
}
NORMS.update({
    name: (*NORMS['MimicNorm'], *options)
    for name, options in VARIANTS.items()
})


def folder_of(norm, seed, out):
    return out / f'{norm}_{seed}'.replace(', ', '-').replace(' ', '-')


def train(norm, seed, options, out):
    """Metrics of a run; those of an earlier one where it has ended."""
    folder = folder_of(norm, seed, out)
    done = folder / 'metrics.json'
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / 'output.txt', 'w') as output:
            status = subprocess.run([
                sys.executable, 'tools/train.py', CONFIG, '--work-dir',
                str(folder), '--resume', '--cfg-options',
                f'randomness.seed={seed}', 'train_cfg.val_interval=100',
                'default_hooks.checkpoint.max_keep_ckpts=1', *NORMS[norm],
                *options
            ],
                                    env={**os.environ, 'OMP_NUM_THREADS': '1'},
                                    stdout=output,
                                    stderr=subprocess.STDOUT).returncode
        if status:
            sys.exit(f'{norm}, seed {seed}: tools/train.py ended with status '
                     f'{status}, see {folder}/output.txt')
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


def costs(norms, rounds):
    """What autograd saves, in MiB, and the time of a step, as ratios."""
    register_all_modules()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    parser = argparse.ArgumentParser()
    parser.add_argument('--options', nargs='*', action=DictAction)
    models, saved = {}, {}
    for norm in norms:
        cfg = Config.fromfile(CONFIG)
        options = parser.parse_args(['--options', *NORMS[norm]]).options
        cfg.merge_from_dict(options or {})
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
    parser.add_argument(
        '--norms',
        nargs='+',
        choices=NORMS,
        default=[name for name in NORMS if name not in VARIANTS])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--out', type=Path, default='work_dirs/demo_norms')
    parser.add_argument('--jobs', type=int, default=os.cpu_count())
    parser.add_argument(
        '--rounds', type=int, default=30, help='of timing a step')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], help='for every run')
    args = parser.parse_args()
    if not os.path.isdir('data/digits'):
        subprocess.run([
            sys.executable, 'tools/make_demo_data.py', '--out', 'data/digits'
        ], check=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {(norm, seed): pool.submit(train, norm, seed, args.cfg_options,
                                          args.out)
                for seed in args.seeds for norm in args.norms}
    metrics = {key: run.result() for key, run in runs.items()}
    saved, steps = costs(args.norms, args.rounds)
    print('\n| Norm | mAP | spread | mAP50 | spread | saved, MiB | step, of '
          f'{args.norms[0]} |\n|---|---|---|---|---|---|---|')
    for norm in args.norms:
        own = [metrics[norm, seed] for seed in args.seeds]
        print(f'| {norm} | {spread([m["mAP"] for m in own])} | '
              f'{spread([m["mAP_50"] for m in own])} | {saved[norm]:.1f} | '
              f'{steps[norm]:.2f} |')


if __name__ == '__main__':
    main()
