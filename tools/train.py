"""Train a detector: MMDetection's interface, on MMEngine's Runner."""

import argparse

from mmpsbn.engine.blame import blamed_on_config
from mmpsbn.engine.checkpoint import check_fits, read_checkpoint
from mmpsbn.engine.cli import add_run_arguments, told_to_the_user
from mmpsbn.engine.config import check_start, load_config, set_resume
from mmpsbn.engine.data import blamed_on_data, check_data
from mmpsbn.engine.runner import build_runner, set_amp, set_auto_scale_lr

LOADERS = ('train_dataloader', 'val_dataloader')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint, or from the newest in the work dir')
    parser.add_argument(
        '--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size')
    add_run_arguments(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir,
                      args.launcher)
    if args.amp:
        set_amp(cfg)
    if args.auto_scale_lr:
        set_auto_scale_lr(cfg)
    if args.resume:
        set_resume(cfg, None if args.resume == 'auto' else args.resume)
    elif cfg.get('resume'):
        set_resume(cfg, cfg.get('load_from'))
    check_data(cfg, LOADERS)
    check_start(cfg)
    with blamed_on_config(), blamed_on_data(cfg, LOADERS):
        runner = build_runner(cfg)
        if cfg.get('resume'):
            checkpoint = read_checkpoint(cfg.load_from)
            check_fits(runner.model, checkpoint, cfg.load_from)
        runner.train()
        if cfg.get('resume') and runner.val_loop and \
                checkpoint.get('meta', {}).get('iter', 0) >= runner.max_iters:
            # The last evaluation follows the last checkpoint: it may be all
            # that an interrupted run lacks.
            runner.val()


if __name__ == '__main__':
    with told_to_the_user('--resume goes on from the last checkpoint'):
        main()
