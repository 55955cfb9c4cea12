"""The demo: make data, train a psBN detector, evaluate it, show it.

Each step is one of the repository's own commands and is printed as it would
be typed. After an interruption, the same command resumes.
"""

import argparse
import json
import os
import pickle
import shlex
import subprocess
import sys
import time
from pathlib import Path

import mmpsbn.cli  # noqa: F401  It checks the stack, so it is first.

# isort: split
from mmpsbn.datasets.visualization import draw_detections

CONFIG = 'configs/demo/faster-rcnn_r18-half_fpn_psbn_digits.py'
DATA = 'data/digits'
SCENES = 6


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/demo', help='output folder')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], help='as in tools/train.py'
    )
    return parser.parse_args()


def run(*command):
    print(f'\n$ python {shlex.join(map(str, command))}', flush=True)
    status = subprocess.run([sys.executable, *map(str, command)]).returncode
    if status:
        sys.exit(
            f'The demo stopped: {command[0]} ended with status {status}. '
            'The same command resumes from here.'
        )


def main():
    args = parse_args()
    # The demo is about its own data, wherever other data may be.
    os.environ.pop('MMDET_DATASETS', None)
    os.chdir(Path(__file__).resolve().parent.parent)
    work_dir = Path(args.work_dir)
    options = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    start = time.monotonic()
    resumed = (work_dir / 'last_checkpoint').exists()
    if not os.path.isdir(DATA):
        run('tools/make_demo_data.py', '--out', DATA)
    run('tools/train.py', CONFIG, '--work-dir', work_dir, '--resume', *options)
    checkpoint = (work_dir / 'last_checkpoint').read_text().strip()
    predictions = work_dir / 'predictions.pkl'
    outputs = ['--work-dir', work_dir, '--out', predictions]
    run('tools/test.py', CONFIG, checkpoint, *outputs, *options)
    with open(predictions, 'rb') as file:
        samples = pickle.load(file)[:SCENES]
    picture = work_dir / 'detections.png'
    draw_detections(samples, f'{DATA}/annotations/instances_val2017.json', str(picture))
    newest = max(work_dir.glob('*/*.json'), key=os.path.getmtime)
    metrics = json.loads(newest.read_text())
    minutes = '' if resumed else f', {(time.monotonic() - start) / 60:.1f} min'
    print(f"""
psBN Faster R-CNN on digits{minutes}

  bbox mAP     {metrics['coco/bbox_mAP']:.3f}
  bbox mAP50   {metrics['coco/bbox_mAP_50']:.3f}

  checkpoint   {checkpoint}
  detections   {picture}

Next: compare BN, psBN and MimicNorm on your data with
python tools/compare_norms.py YOUR_CONFIG""")


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('\nInterrupted. The same command resumes from here.')
