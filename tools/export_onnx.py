"""Export a detector to ONNX, with its post-processing.

  images  (N, 3, H, W)   float32, normalized and padded as the config's data
                         preprocessor does it
  dets    (N, K, 5)      x1, y1, x2, y2 in pixels of the input, and the score
  labels  (N, K)         -1 where an image has less than K detections

BN is folded into convs where that changes nothing. The file is run by
onnxruntime and compared with PyTorch before it is kept; its metadata hold
classes, mean and std.
"""

import argparse
import os.path as osp

import mmpsbn.engine  # noqa: F401  First: it checks the stack.

from mmengine.logging import MMLogger

from mmpsbn.engine.checkpoint import read_checkpoint
from mmpsbn.engine.cli import (add_cfg_options, add_image_arguments,
                               add_shape_argument, shape_of,
                               told_to_the_user)
from mmpsbn.engine.config import read_config
from mmpsbn.engine.data import find_images
from mmpsbn.errors import InputError
from mmpsbn.export import export_onnx


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of the trained model')
    parser.add_argument('checkpoint', help='of the trained model')
    parser.add_argument('--out', required=True, help='the .onnx to write')
    add_shape_argument(parser)
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='take any number of images, and any size in multiples of 32')
    parser.add_argument(
        '--raw',
        action='store_true',
        help="write the heads' outputs in the place of detections")
    add_image_arguments(parser, 'to compare on', number=4)
    parser.add_argument(
        '--force', action='store_true', help='replace a file that exists')
    add_cfg_options(parser)
    return parser.parse_args()


def check_arguments(args):
    if not args.out.endswith('.onnx'):
        raise InputError(f'--out {args.out} must end in .onnx.')
    if osp.exists(args.out) and not args.force:
        raise InputError(f'{args.out} exists; --force replaces it.')


def main():
    args = parse_args()
    check_arguments(args)
    shape = shape_of(args)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    cfg = read_config(args.config, args.cfg_options)
    checkpoint = read_checkpoint(args.checkpoint)
    images = find_images(cfg, args.images, args.number)
    exported = export_onnx(cfg, checkpoint, args.checkpoint, images, args.out,
                           shape, args.dynamic, args.raw)
    before, after = exported.before, exported.after
    print(f'{"nodes":24}{"trained":>9}{"file":>9}')
    for kind in sorted(before | after):
        if before[kind] != after[kind]:
            print(f'{kind:24}{before[kind]:9}{after[kind]:9}')
    print(f'{"all":24}{before.total():9}{after.total():9}')
    print(f'{args.out}, run by onnxruntime on {len(images)} images: raw '
          f'outputs differ by at most {exported.difference:.1e} of the '
          f'largest, {exported.same} of {exported.detections} detections are '
          'the same.')


if __name__ == '__main__':
    with told_to_the_user():
        main()
