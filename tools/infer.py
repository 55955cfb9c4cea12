"""Detect objects in images with DetInferencer, and draw and write them.

Pictures go to vis/ of the output folder, and predictions to preds/, a JSON
file with labels, scores and boxes (x1, y1, x2, y2 in pixels) for each image.
"""

import argparse
import os
import warnings
from pathlib import Path

import mmpsbn.cli  # noqa: F401  It checks the stack, so it is first.

# isort: split
import torch
from mmdet.apis import DetInferencer
from mmengine.logging import MMLogger
from mmengine.utils import track_iter_progress

from mmpsbn.checkpoints.matching import check_compatible
from mmpsbn.checkpoints.reading import read_checkpoint
from mmpsbn.cli.arguments import add_cfg_options
from mmpsbn.cli.errors import exit_with_message
from mmpsbn.config.errors import explain_config_errors
from mmpsbn.config.images import check_images, list_images
from mmpsbn.config.reading import read_config
from mmpsbn.errors import InputError
from mmpsbn.files import output_folder


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('inputs', help='an image, or a folder of images')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out-dir', default='outputs', help='output folder')
    parser.add_argument(
        '--pred-score-thr',
        type=float,
        default=0.3,
        help='minimum score of the boxes that are drawn; the JSON files have all boxes',
    )
    parser.add_argument('--batch-size', type=int, default=1, help='images per batch')
    parser.add_argument(
        '--device', help='device, such as cpu or cuda:0; by default a GPU if available'
    )
    add_cfg_options(parser)
    return parser.parse_args()


def check_device(device):
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f'--device {device} cannot be used here: '
            f'{str(error).splitlines()[0].rstrip(".")}. Try --device cpu.'
        ) from error


def main():
    args = parse_args()
    if args.batch_size < 1:
        raise InputError(
            f'--batch-size {args.batch_size} is not supported: it must be at least 1. '
            'Try --batch-size 1.'
        )
    check_device(args.device)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    images = [args.inputs] if os.path.isfile(args.inputs) else list_images(args.inputs)
    by_stem = {}
    for image in images:
        other = by_stem.setdefault(Path(image).stem, image)
        if other != image:
            raise InputError(
                f'{other} and {image} would have the same predictions file, '
                f'preds/{Path(image).stem}.json. Rename one of them.'
            )
    cfg = read_config(args.config, args.cfg_options)
    checkpoint = read_checkpoint(args.checkpoint)
    try:
        os.makedirs(args.out_dir, exist_ok=True)
    except OSError as error:
        raise InputError(
            f'--out-dir {args.out_dir} cannot be created ({error.strerror}). Choose '
            'another folder.'
        ) from error
    # It names a folder for each call, and none for its visualizer.
    warnings.filterwarnings('ignore', 'Failed to add')
    with explain_config_errors():
        inferencer = DetInferencer(
            cfg, args.checkpoint, device=args.device, show_progress=False
        )
    check_compatible(inferencer.model, checkpoint)
    batches = [
        images[start : start + args.batch_size]
        for start in range(0, len(images), args.batch_size)
    ]
    try:
        for batch in track_iter_progress(batches):
            with output_folder(args.out_dir) as out:
                inferencer(
                    batch,
                    batch_size=args.batch_size,
                    pred_score_thr=args.pred_score_thr,
                    no_save_pred=False,
                    out_dir=out,
                )
    except Exception:
        check_images(images)
        raise
    print(
        f'\nImages: {len(images)}. Pictures: {args.out_dir}/vis. '
        f'Predictions: {args.out_dir}/preds.'
    )


if __name__ == '__main__':
    with exit_with_message():
        main()
