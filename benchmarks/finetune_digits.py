"""Finetuning from a BN detector: BN, MimicNorm converted, and from scratch.

    python benchmarks/finetune_digits.py [--seeds 0 1 2]

The detectors of benchmarks/demo_norms.py with BN, one for each seed, are
finetuned on a second task: other scenes, seen at 128 x 128 in the place of
160 x 160, for 3 epochs. They go on with BN, or with MimicNorm after
tools/convert.py; beside them both are trained from scratch for as long. The
table has the mean over seeds and largest minus smallest.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demo_norms import CONFIG, folder_of, spread, train

DETECTOR = 'faster-rcnn'
MIMIC_CONFIG = CONFIG.format(DETECTOR).replace('psbn', 'mimicnorm')
# The row of demo_norms.py with this config's settings.
MIMICNORM = 'MimicNorm, RPN too'
TASK = 'data/digits-2'
EPOCHS = 3
SCALE = '(128,128)'
# The resizing step of the train and test pipelines.
SETTINGS = [
    f'train_cfg.max_epochs={EPOCHS}', f'param_scheduler.1.T_max={EPOCHS}',
    'param_scheduler.0.end=50',
    f'train_dataloader.dataset.pipeline.2.scale={SCALE}',
    f'val_dataloader.dataset.pipeline.1.scale={SCALE}'
]


def tool(*arguments):
    subprocess.run([sys.executable, *map(str, arguments)], check=True)


def starts(seed, pretrained, out):
    """For each row of the table: its norm, and where it starts."""
    bn = folder_of(DETECTOR, 'BN', seed, pretrained) / 'epoch_8.pth'
    mimic = out / f'converted_{seed}.pth'
    if not mimic.exists():
        tool('tools/convert.py', MIMIC_CONFIG, bn, '--to', 'mimicnorm',
             '--out', mimic, '--images', f'{TASK}/train2017')
    return {
        'BN, finetuned': ('BN', bn),
        'MimicNorm, converted and finetuned': (MIMICNORM, mimic),
        'BN, from scratch': ('BN', None),
        'MimicNorm, from scratch': (MIMICNORM, None),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--lr', type=float, nargs='+', default=[0.02])
    parser.add_argument('--jobs', type=int, default=os.cpu_count())
    args = parser.parse_args()
    out, pretrained = Path('work_dirs/finetune'), Path('work_dirs/demo_norms')
    out.mkdir(parents=True, exist_ok=True)
    if not os.path.isdir(TASK):
        tool('tools/make_demo_data.py', '--out', TASK, '--seed', 1)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(
            pool.map(
                lambda seed: train(DETECTOR, 'BN', seed, [], pretrained),
                args.seeds))
        os.environ['MMDET_DATASETS'] = TASK
        runs = {}
        for seed in args.seeds:
            for row, (norm, weights) in starts(seed, pretrained, out).items():
                for lr in args.lr:
                    options = [*SETTINGS, f'optim_wrapper.optimizer.lr={lr}']
                    folder = out / f'{"from" if weights else "scratch"}_{lr}'
                    if weights:
                        options += ['model.init_cfg.type=Pretrained',
                                    f'model.init_cfg.checkpoint={weights}']
                    runs[row, lr, seed] = pool.submit(train, DETECTOR, norm,
                                                      seed, options, folder)
    print('\n| Start | lr | mAP | spread | mAP50 | spread |\n'
          '|---|---|---|---|---|---|')
    for row, lr in dict.fromkeys((row, lr) for row, lr, _ in runs):
        metrics = [runs[row, lr, seed].result() for seed in args.seeds]
        print(f'| {row} | {lr} | {spread([m["mAP"] for m in metrics])} | '
              f'{spread([m["mAP_50"] for m in metrics])} |')


if __name__ == '__main__':
    main()
