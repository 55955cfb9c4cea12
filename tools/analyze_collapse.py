"""Show which channels of a detector have collapsed.

  dead            behind the ReLU that follows its norm layer, a channel is 0
                  at every position of every image; where a residual sum comes
                  between, the sum is judged, and counted separately
  P(y > 0)        how often gamma * x_hat + shift is positive for a normal
                  x_hat: the parameters alone
  |gamma|         has gone to 0

It reads checkpoints of BN, psBN, GN and MimicNorm, of stock MMDetection too.
With --out it writes collapse.csv, collapse.json and figures; where
FilterCollapseHook has left its history beside a checkpoint, that is drawn.
"""

import argparse
import os
import os.path as osp

import mmpsbn.engine  # noqa: F401  First: it checks the stack.

from mmengine.logging import MMLogger

from mmpsbn.analysis.figures import draw_history, draw_layers, draw_plane
from mmpsbn.analysis.report import analyze, table, write
from mmpsbn.engine.checkpoint import read_checkpoint
from mmpsbn.engine.cli import (add_cfg_options, add_image_arguments,
                               told_to_the_user)
from mmpsbn.engine.config import read_config
from mmpsbn.engine.data import find_images
from mmpsbn.engine.filter_collapse_hook import HISTORY, read_history, shares
from mmpsbn.engine.whole_files import whole_folder


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoints', nargs='+', help='checkpoint files')
    add_image_arguments(parser, 'that decide', number=64)
    parser.add_argument('--out', help='folder for files and figures')
    add_cfg_options(parser)
    return parser.parse_args()


def without_repeats(paths):
    """The paths of different files, each as it was first given."""
    files = {}
    for path in paths:
        files.setdefault(osp.realpath(path), path)
    return list(files.values())


def short_names(paths):
    """File names, with as much of the path as distinguishes them."""
    paths = [osp.abspath(path) for path in paths]
    common = osp.commonpath([osp.dirname(path) for path in paths])
    inner = [osp.relpath(path, common) for path in paths]
    for names in ([osp.splitext(osp.basename(path))[0] for path in paths],
                  [osp.splitext(path)[0] for path in inner], inner):
        if len(set(map(file_name, names))) == len(names):
            return names
    return [f'{path} ({number})' for number, path in enumerate(inner, 1)]


def file_name(name):
    """The part of a figure's file name that is of a checkpoint."""
    return name.replace(os.sep, '_')


def show(title, rows):
    print(f'\n{title}')
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print('  '.join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths))))


def main():
    args = parse_args()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    cfg = read_config(args.config, args.cfg_options)
    images = find_images(cfg, args.images, args.number)
    paths = without_repeats(args.checkpoints)
    results = {}
    for name, path in zip(short_names(paths), paths):
        results[name] = analyze(cfg, read_checkpoint(path), path, images)
        show(f'{path}, {len(images)} images', table(results[name]))
    if not any(layer.judged for layers in results.values()
               for layer in layers):
        print('\nNo channel was judged dead or alive: no ReLU or ReLU6 '
              'follows a norm layer, and other activations do not close a '
              'channel.')
    if not args.out:
        return
    with whole_folder(args.out) as out:
        write(results, len(images), out)
        draw_layers(results, osp.join(out, 'layers.png'))
        for name, layers in results.items():
            file = f'plane_{file_name(name)}.png'
            draw_plane(layers, name, osp.join(out, file))
        folders = dict.fromkeys(osp.dirname(path) or '.' for path in paths)
        for index, folder in enumerate(folders):
            history = osp.join(folder, HISTORY)
            lines = read_history(history) if osp.isfile(history) else []
            if lines:
                draw_history(
                    [line['iter'] for line in lines], list(map(shares, lines)),
                    osp.join(out, f'history_{index + 1}.png'
                             if index else 'history.png'))
    print(f'\nFiles and figures: {args.out}')


if __name__ == '__main__':
    with told_to_the_user():
        main()
