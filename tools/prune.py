"""Remove the channels with constant outputs from a detector.

The tool removes a channel if it has the same value at every position of every
image for all layers that read it. The value is 0 after a ReLU that is never
positive. Other values are added to the bias of the next layer. Layers that
share channels, for example through residual sums, lose a channel only
together. The tool writes these files into the folder --out, for one image of a
fixed shape:

  pruned.onnx   as tools/export_onnx.py writes it
  pruned.pt2    the same for torch.export.load, after `import mmpsbn.export`,
                which has its operators; the outputs are dets, labels and
                those of the heads
  pruned.json   what was removed and kept, and the numbers below

Before they are kept, the pruned model and pruned.onnx are compared with the
trained model, and pruned.pt2 with the pruned model. A channel that is constant
on these images may not be constant on others. Use many images of all kinds,
and check the agreement on held-out images. If no channel is constant, nothing
is written, because tools/export_onnx.py writes the same file, and --force
removes earlier files. The exit status is then 0, so a script can prune
whatever it trains.
"""

import os.path as osp

import mmpsbn.cli  # noqa: F401  It checks the stack, so it is first.

# isort: split
from mmengine.logging import MMLogger

from mmpsbn.checkpoints.reading import read_checkpoint
from mmpsbn.cli.arguments import (
    add_shape_argument,
    check_replaced,
    check_shape,
    deployment_parser,
)
from mmpsbn.cli.errors import exit_with_message
from mmpsbn.config.data import find_images
from mmpsbn.config.reading import read_config
from mmpsbn.errors import InputError
from mmpsbn.prune import prune
from mmpsbn.prune.pruned_files import FILES

# Beyond those that select channels, images to compare on.
OTHERS = 16


def parse_args():
    parser = deployment_parser(
        __doc__, 'the folder to write to', 'that select the channels', number=64
    )
    add_shape_argument(parser)
    return parser.parse_args()


def check_arguments(args):
    if osp.exists(args.out) and not osp.isdir(args.out):
        raise InputError(
            f'--out {args.out} is a file, but the tool writes a folder. Name a folder.'
        )
    check_replaced(args, *(osp.join(args.out, file) for file in FILES))


def show_kept(kept):
    for reason, number in kept.items():
        print(
            f'Channels kept although they are constant for a layer: {number}, because '
            f'{reason}.'
        )


def show(pruned):
    removal, before, after = pruned[:3]
    width = max(map(len, [*removal.channels, 'FLOPs of an image']))
    print(f'{"layer":{width}}{"channels":>16}{"removed":>16}')
    for layer, channels in removal.channels.items():
        print(f'{layer:{width}}{removal.sizes[layer]:16}{len(channels):16}')
    print(f'\n{"":{width}}{"before":>16}{"after":>16}')
    for title, one, other, form in zip(
        ('parameters', 'FLOPs of an image', 'ms in PyTorch'),
        before,
        after,
        (',', ',', ',.1f'),
    ):
        print(f'{title:{width}}{one:16{form}}{other:16{form}}')


def show_agreement(pruned):
    own, others = pruned.agreement, pruned.elsewhere
    print(f'Agreement on the {own.images} images that selected the channels: {own}')
    if others:
        print(f'Agreement on {others.images} held-out images: {others}')
    else:
        print(
            'Warning: all images were used to select channels, and none is left to '
            'compare on. A channel that is constant on these images may not be '
            'constant on others. Lower --number, or name a folder with more images '
            'by --images.'
        )


def main():
    args = parse_args()
    check_arguments(args)
    shape = check_shape(args)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    cfg = read_config(args.config, args.cfg_options)
    checkpoint = read_checkpoint(args.checkpoint)
    images = find_images(cfg, args.images, args.number)
    others = find_images(cfg, args.images, args.number + OTHERS)[args.number :]
    pruned = prune(cfg, checkpoint, images, others, args.out, shape=shape)
    if not pruned.removal.removed:
        print(
            f'No channel of {args.checkpoint} can be removed: on '
            f'{len(images)} images, none is constant for all layers that '
            'read it. Nothing was written.'
        )
        if args.force:
            print(f'{args.out} has no files of an earlier model, either.')
        show_kept(pruned.removal.kept)
        return
    show(pruned)
    print(
        f'\nRemoved channels: {pruned.removal.removed}. Channels that a residual sum '
        'connects count once.'
    )
    show_kept(pruned.removal.kept)
    show_agreement(pruned)
    print(f'Files: {args.out}')


if __name__ == '__main__':
    with exit_with_message():
        main()
