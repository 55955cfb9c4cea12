"""Convert a checkpoint to another normalization."""

import argparse
import os
import os.path as osp

import mmpsbn  # noqa: F401  First: it checks the stack.

import mmcv
import torch
from mmengine.config import DictAction
from mmengine.logging import MMLogger

from mmpsbn.convert import to_mimicnorm
from mmpsbn.engine.checkpoint import read_checkpoint
from mmpsbn.engine.cli import told_to_the_user
from mmpsbn.engine.config import read_config
from mmpsbn.engine.data import data_files
from mmpsbn.errors import InputError

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config of the model to convert to')
    parser.add_argument(
        'checkpoint',
        help='of the same model with BN, or of its backbone alone, as '
        'torchvision://resnet50 is')
    parser.add_argument('--to', required=True, choices=['mimicnorm'])
    parser.add_argument('--out', required=True, help='the file to write')
    parser.add_argument(
        '--images',
        help="folder of images to calibrate on; by default the config's "
        'training images')
    parser.add_argument(
        '--number', type=int, default=16, help='how many of them')
    parser.add_argument(
        '--force', action='store_true', help='replace the file if it exists')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        help='settings of the config to override, as '
                        'key=value')
    return parser.parse_args()


def find_images(cfg, folder, number):
    if number < 1:
        raise InputError(f'--number {number}: at least 1 image is needed.')
    if folder is None:
        files = next(data_files(cfg, ('train_dataloader', )), None)
        folder = files.images if files else ''
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(
            f'the folder of images {folder} cannot be read '
            f'({error.strerror}); name one by --images.') from error
    images = [
        osp.join(folder, name) for name in names
        if name.lower().endswith(IMAGES)
    ][:number]
    if not images:
        raise InputError(f'{folder} has no image ({", ".join(IMAGES)}).')
    for image in images:
        if mmcv.imread(image) is None:
            raise InputError(f'the image {image} cannot be read.')
    return images


def main():
    args = parse_args()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    cfg = read_config(args.config, args.cfg_options)
    if osp.exists(args.out) and not args.force:
        raise InputError(f'{args.out} exists; --force replaces it.')
    checkpoint = read_checkpoint(args.checkpoint)
    images = find_images(cfg, args.images, args.number)
    converted = to_mimicnorm(cfg, checkpoint, images, args.checkpoint)
    meta = dict(
        checkpoint.get('meta') or {}, converted_from=args.checkpoint)
    partial = f'{args.out}.partial'
    try:
        os.makedirs(osp.dirname(args.out) or '.', exist_ok=True)
        torch.save(dict(meta=meta, state_dict=converted.state_dict), partial)
        os.replace(partial, args.out)
    except (OSError, RuntimeError) as error:
        if osp.exists(partial):
            os.remove(partial)
        raise InputError(f'{args.out} cannot be written: {error}') from error
    print(f'{args.out}: outputs moved by {converted.before:.3f} of their norm '
          f'when the filters were centred, and by {converted.after:.3f} after '
          f'the biases were calibrated on {len(images)} images.')


if __name__ == '__main__':
    with told_to_the_user():
        main()
