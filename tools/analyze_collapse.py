"""Show which channels of a detector have collapsed.

  dead            behind the ReLU that follows its norm layer, a channel is 0
                  at every position of every image; where a residual sum comes
                  between, the sum is judged, and counted separately
  P(y > 0)        how often gamma * x_hat + shift is positive for a normal
                  x_hat: the parameters alone
  |gamma|         has gone to 0

Several checkpoints, or the work dirs of successive trainings in their order,
are rounds. A table shows how many channels are dead after each round, and how
many of them are newly dead or have recovered since the round before it. A work
dir stands for its last checkpoint. With --number 0, the tool needs no images
and judges the parameters alone.

It reads checkpoints of BN, psBN, GN and MimicNorm, of stock MMDetection too.
With --out it writes collapse.csv, collapse.json and figures, and rounds.csv
and rounds.png for several checkpoints. It draws the history that
FilterCollapseHook has left next to a checkpoint.
"""

import argparse
import os
import os.path as osp
import re
from itertools import pairwise

import mmpsbn.cli  # noqa: F401  It checks the stack, so it is first.

# isort: split
from mmengine.logging import MMLogger

from mmpsbn.analysis.detector import analyze
from mmpsbn.analysis.figures import draw_history, draw_layers, draw_plane, draw_rounds
from mmpsbn.analysis.report import align_columns, table, write
from mmpsbn.analysis.rounds import (
    IMAGES,
    PARAMETERS,
    changes,
    rounds_table,
    write_rounds,
)
from mmpsbn.checkpoints.reading import find_checkpoint, read_checkpoint
from mmpsbn.cli.arguments import add_cfg_options, add_image_arguments
from mmpsbn.cli.errors import exit_with_message
from mmpsbn.config.data import find_images
from mmpsbn.config.reading import read_config
from mmpsbn.errors import InputError
from mmpsbn.files import output_folder
from mmpsbn.hooks.filter_collapse_hook import HISTORY, read_history, shares

# With more checkpoints, layers.png shows the first and the last.
MOST_BARS = 6


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        'checkpoints',
        nargs='+',
        metavar='CHECKPOINT_OR_WORK_DIR',
        help='checkpoint files, or work dirs of trainings, in order',
    )
    add_image_arguments(parser, 'to judge the channels on', number=64)
    parser.add_argument('--out', help='folder for files and figures')
    add_cfg_options(parser)
    return parser.parse_args()


def short_names(paths):
    """File names, with as much of the path as distinguishes them."""
    paths = [osp.abspath(path) for path in paths]
    common = osp.commonpath([osp.dirname(path) for path in paths])
    inner = [osp.relpath(path, common) for path in paths]
    for names in (
        [osp.splitext(osp.basename(path))[0] for path in paths],
        [osp.splitext(path)[0] for path in inner],
        inner,
    ):
        if len(set(map(file_name, names))) == len(names):
            return names
    return [f'{path} ({number})' for number, path in enumerate(inner, 1)]


def file_name(name):
    """The part of a figure's file name that is of a checkpoint."""
    return name.replace(os.sep, '_')


def show(title, rows):
    print(f'\n{title}\n{align_columns(rows)}')


def find_paths(names):
    """Find different checkpoints, each by the name that was given first."""
    paths = {}
    for path in (find_checkpoint(name).path for name in names):
        paths.setdefault(osp.realpath(path), path)
    return list(paths.values())


def analyze_all(cfg, paths, images):
    """Analyze checkpoints, and return their layers by their short names."""
    results, times = {}, {}
    for name, path in zip(short_names(paths), paths):
        try:
            checkpoint = read_checkpoint(path)
            results[name] = analyze(cfg, checkpoint, images)
        except InputError as error:
            if not results:
                raise
            raise InputError(
                f'{error} Successive checkpoints are compared channel by '
                f'channel, so each of them must fit {cfg.filename}. Analyze '
                'this one alone, with its own config.'
            ) from error
        show(f'{path}, {len(images)} images', table(results[name], len(images)))
        times[name] = checkpoint.meta.get('time', '')
    check_order(times)
    return results


def check_order(times):
    """Warn about a checkpoint that was written before the one in front of it."""
    # MMCV 1.x wrote the time in another form.
    dated = [one for one in times.items() if re.fullmatch(r'\d{8}_\d{6}', str(one[1]))]
    for (first, earlier), (second, later) in pairwise(dated):
        if later < earlier:
            print(
                f'\nWarning: {second} was written before {first}, and the table below '
                'has them in the order of the command line. A shell sorts round_10 '
                'before round_2; ls -dv sorts by number.'
            )
            return


def history_beside(path):
    """Read what FilterCollapseHook has written next to a checkpoint."""
    return read_history(osp.join(osp.dirname(path), HISTORY))


def histories_of(paths):
    """Read the shares of dead channels that were measured in training.

    A work dir that has several of the checkpoints is left out.
    """
    folders = [osp.dirname(path) for path in paths]
    found = {}
    for number, path in enumerate(paths, 1):
        lines = history_beside(path)
        if lines and folders.count(osp.dirname(path)) == 1:
            found[number] = [
                (line['iter'] / lines[-1]['iter'], shares(line)['dead'])
                for line in lines
                if 'dead' in shares(line)
            ]
    return {number: points for number, points in found.items() if points}


def write_all(results, paths, images, by, folder):
    with output_folder(folder) as out:
        write(results, len(images), out)
        if images:
            few = list(results)
            few = few if len(few) <= MOST_BARS else [few[0], few[-1]]
            draw_layers(
                {name: results[name] for name in few}, osp.join(out, 'layers.png')
            )
            for name, layers in results.items():
                file = f'plane_{file_name(name)}.png'
                draw_plane(layers, name, osp.join(out, file))
        if by:
            write_rounds(list(results), by, osp.join(out, 'rounds.csv'))
            draw_rounds(by, histories_of(paths), osp.join(out, 'rounds.png'))
        last = {osp.dirname(path): path for path in paths}
        for index, path in enumerate(last.values()):
            lines = history_beside(path)
            if lines:
                draw_history(
                    [line['iter'] for line in lines],
                    list(map(shares, lines)),
                    osp.join(
                        out, f'history_{index + 1}.png' if index else 'history.png'
                    ),
                )
    print(f'\nFiles and figures: {folder}')


def main():
    args = parse_args()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    cfg = read_config(args.config, args.cfg_options)
    images = find_images(cfg, args.images, args.number) if args.number else []
    paths = find_paths(args.checkpoints)
    results = analyze_all(cfg, paths, images)
    if not any(layer.judged for layers in results.values() for layer in layers):
        print(
            '\nNo channel was judged dead or alive: no ReLU, ReLU6 or Leaky '
            'ReLU follows a norm layer, and other activations do not close a '
            'channel.'
        )
    by = {}
    if len(paths) > 1:
        judges = (PARAMETERS, IMAGES) if images else (PARAMETERS,)
        by = {judge: changes(list(results.values()), judge) for judge in judges}
        show(
            'Dead channels by round, of layers that a ReLU follows',
            rounds_table(list(results), by),
        )
    if args.out:
        write_all(results, paths, images, by, args.out)


if __name__ == '__main__':
    with exit_with_message():
        main()
