"""Remove the channels of a detector that give nothing.

A channel goes if, on the images, it is the same number at every position of
every input for all layers that read it: 0 behind a ReLU that never opens, or
a constant, which then goes into the next layer's bias. The layers that share
channels, through residual sums for one, lose a channel only together. Written
into the folder --out, for one image of a fixed shape:

  pruned.onnx   as tools/export_onnx.py writes it
  pruned.pt2    the same for torch.export.load, after `import mmpsbn.export`,
                which has its operators; outputs are dets, labels and the
                heads' own
  pruned.json   what was removed and kept, and the numbers below

Both are compared with the trained model before they are kept. A channel that
is constant on these images may live on others: take images of all kinds, many
of them, and look at the line on held-out images. Where no channel is
constant, nothing is written, since tools/export_onnx.py gives the same file;
the exit status is 0, so that a script can prune whatever it trains.
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
        show_kept(pruned.removal.kept)
        return
    show(pruned)
    print(
        f'\nRemoved channels: {pruned.removal.removed}. Channels that a residual sum '
        'connects count once.'
    )
    show_kept(pruned.removal.kept)
    print(
        f'Agreement on the {len(images)} images that selected the channels: '
        f'{pruned.agreement}'
    )
    if pruned.elsewhere:
        print(f'Agreement on {len(others)} held-out images: {pruned.elsewhere}')
    print(f'Files: {args.out}')


if __name__ == '__main__':
    with exit_with_message():
        main()
