"""Convert a checkpoint to another normalization.

  --to bn         from psBN or MimicNorm to a stock MMDetection model: writes a
                  config and a checkpoint that need no mmpsbn, and runs both
                  models to prove that they compute the same
  --to mimicnorm  from BN, a detector or a backbone alone as
                  torchvision://resnet50, to weights for MimicNorm
  --to psbn       from BN to psBN, which takes the weights as they are
"""

import argparse
import os.path as osp

import mmpsbn.engine  # noqa: F401  First: it checks the stack.

from mmengine.logging import MMLogger

from mmpsbn.convert import (convert_to_mimicnorm, convert_to_psbn,
                            convert_to_stock)
from mmpsbn.convert.conversion import config_of
from mmpsbn.engine.checkpoint import read_checkpoint
from mmpsbn.engine.cli import (add_cfg_options, add_image_arguments,
                               told_to_the_user)
from mmpsbn.engine.config import read_config
from mmpsbn.engine.data import find_images
from mmpsbn.errors import InputError


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'config', help='of the model with psBN or MimicNorm, on either side')
    parser.add_argument('checkpoint', help='what to convert')
    parser.add_argument(
        '--to', required=True, choices=['bn', 'mimicnorm', 'psbn'])
    parser.add_argument(
        '--out',
        required=True,
        help='the checkpoint to write; --to bn writes a config beside it')
    add_image_arguments(parser, 'to measure on', number=16)
    parser.add_argument(
        '--fuse',
        action='store_true',
        help='with --to bn: fold BN into convs outside of the backbone')
    parser.add_argument(
        '--keep-optimizer',
        action='store_true',
        help="with --to bn, from psBN: take the optimizer's state along")
    parser.add_argument(
        '--force', action='store_true', help='replace files that exist')
    add_cfg_options(parser)
    return parser.parse_args()


def check_arguments(args):
    if not args.out.endswith('.pth'):
        raise InputError(f'--out {args.out} must end in .pth.')
    if args.to != 'bn' and (args.fuse or args.keep_optimizer):
        raise InputError('--fuse and --keep-optimizer go with --to bn.')
    for file in [args.out] + [config_of(args.out)] * (args.to == 'bn'):
        if osp.exists(file) and not args.force:
            raise InputError(f'{file} exists; --force replaces it.')


def main():
    args = parse_args()
    check_arguments(args)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    cfg = read_config(args.config, args.cfg_options)
    checkpoint = read_checkpoint(args.checkpoint)
    if 'ema_state_dict' in checkpoint:
        print('The checkpoint has averaged (EMA) weights; they are taken.')
    if args.to == 'psbn':
        convert_to_psbn(cfg, checkpoint, args.checkpoint, args.out)
        print(f'{args.out}: the same weights, which fit psBN.')
        return
    images = find_images(cfg, args.images, args.number)
    if args.to == 'mimicnorm':
        moved = convert_to_mimicnorm(cfg, checkpoint, args.checkpoint, images,
                                     args.out)
        print(f'{args.out}: outputs moved by {moved.before:.3f} of their norm '
              f'when the filters were centered, and by {moved.after:.3f} '
              f'after the biases were calibrated on {len(images)} images.')
        if moved.reinitialized:
            print('The checkpoint has another number of classes. Layers that '
                  'are left out, and reinitialized in training: '
                  f'{", ".join(moved.reinitialized)}.')
        return
    proof = convert_to_stock(cfg, args.config, checkpoint, args.checkpoint,
                             images, args.out, args.fuse, args.keep_optimizer)
    print(f'{config_of(args.out)} and {args.out}, run without mmpsbn on '
          f'{len(images)} images: raw outputs differ by at most '
          f'{proof.difference:.1e} of the largest, {proof.same} of '
          f'{proof.detections} detections are the same.')


if __name__ == '__main__':
    with told_to_the_user():
        main()
