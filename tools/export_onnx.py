"""Export a detector to ONNX, with its post-processing.

  images  (N, 3, H, W)   float32, normalized and padded as the config's data
                         preprocessor does it
  dets    (N, K, 5)      x1, y1, x2, y2 in pixels of the input, and the score
  labels  (N, K)         -1 where an image has less than K detections

BN is folded into convs where that changes nothing. The file is run by
onnxruntime and compared with PyTorch before it is kept. Its metadata contain
classes, mean and std.
"""

import mmpsbn.cli  # noqa: F401  It checks the stack, so it is first.

# isort: split
from mmengine.logging import MMLogger

from mmpsbn.checkpoints.reading import read_checkpoint
from mmpsbn.cli.arguments import (
    add_shape_argument,
    check_out,
    check_shape,
    deployment_parser,
)
from mmpsbn.cli.errors import exit_with_message
from mmpsbn.config.data import find_images
from mmpsbn.config.reading import read_config
from mmpsbn.export import export_onnx


def parse_args():
    parser = deployment_parser(__doc__, 'the .onnx to write', 'to compare on', number=4)
    add_shape_argument(parser)
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='take any number of images, and any size in multiples of 32',
    )
    parser.add_argument(
        '--raw',
        action='store_true',
        help="write the heads' outputs instead of detections",
    )
    return parser.parse_args()


def main():
    args = parse_args()
    check_out(args, '.onnx')
    shape = check_shape(args)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    cfg = read_config(args.config, args.cfg_options)
    checkpoint = read_checkpoint(args.checkpoint)
    images = find_images(cfg, args.images, args.number)
    exported = export_onnx(
        cfg,
        checkpoint,
        images,
        args.out,
        shape=shape,
        dynamic=args.dynamic,
        raw=args.raw,
    )
    before, after = exported.before, exported.after
    print(f'{"nodes":24}{"trained":>9}{"file":>9}')
    for kind in sorted(before | after):
        if before[kind] != after[kind]:
            print(f'{kind:24}{before[kind]:9}{after[kind]:9}')
    print(f'{"all":24}{before.total():9}{after.total():9}')
    print(
        f'{args.out}, run by onnxruntime on {len(images)} images: {exported.agreement}'
    )


if __name__ == '__main__':
    with exit_with_message():
        main()
