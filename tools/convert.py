"""Convert a checkpoint to another normalization.

--to bn         from psBN or MimicNorm to a stock MMDetection model: writes a
                config and a checkpoint that need no mmpsbn, and runs both
                models to verify that they compute the same
--to mimicnorm  from BN, a detector or a backbone alone as
                torchvision://resnet50, to weights for MimicNorm
--to psbn       from BN to psBN, which loads the weights unchanged
"""

import mmpsbn.cli  # noqa: F401  It checks the stack, so it is first.

# isort: split
from mmengine.logging import MMLogger

from mmpsbn.checkpoints.reading import read_checkpoint
from mmpsbn.cli.arguments import check_out, deployment_parser
from mmpsbn.cli.errors import exit_with_message
from mmpsbn.config.data import find_images
from mmpsbn.config.reading import read_config
from mmpsbn.convert import convert_to_mimicnorm, convert_to_psbn, convert_to_stock
from mmpsbn.convert.conversion import config_path
from mmpsbn.errors import InputError


def parse_args():
    parser = deployment_parser(
        __doc__,
        'the checkpoint to write; --to bn writes a config next to it',
        'to measure on',
        number=16,
    )
    parser.add_argument('--to', required=True, choices=['bn', 'mimicnorm', 'psbn'])
    parser.add_argument(
        '--fuse',
        action='store_true',
        help='with --to bn: fold BN into convs outside of the backbone',
    )
    return parser.parse_args()


def check_arguments(args):
    if args.to != 'bn' and args.fuse:
        raise InputError('--fuse needs --to bn. Remove it, or convert with --to bn.')
    check_out(args, '.pth', *[config_path(args.out)] * (args.to == 'bn'))


def main():
    args = parse_args()
    check_arguments(args)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    cfg = read_config(args.config, args.cfg_options)
    checkpoint = read_checkpoint(args.checkpoint)
    if 'ema_state_dict' in checkpoint.content:
        print('The checkpoint has averaged (EMA) weights. These are converted.')
    if args.to == 'psbn':
        convert_to_psbn(cfg, checkpoint, args.out)
        print(
            f'Wrote {args.out}. The weights are unchanged, because psBN loads the '
            'weights of BN.'
        )
        return
    images = find_images(cfg, args.images, args.number)
    if args.to == 'mimicnorm':
        moved = convert_to_mimicnorm(cfg, checkpoint, images, args.out)
        print(
            f'Wrote {args.out}. Centering the filters changed the outputs by '
            f'{moved.before:.3f} of their norm. After the biases were calibrated on '
            f'{len(images)} images, the outputs differ by {moved.after:.3f}.'
        )
        if moved.reinitialized:
            print(
                'The checkpoint has another number of classes, so training '
                f'reinitializes these layers: {", ".join(moved.reinitialized)}.'
            )
        return
    agreement = convert_to_stock(cfg, checkpoint, images, args.out, fused=args.fuse)
    print(
        f'Wrote {config_path(args.out)} and {args.out}. Without mmpsbn, on '
        f'{len(images)} images: {agreement}'
    )


if __name__ == '__main__':
    with exit_with_message():
        main()
