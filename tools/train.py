"""Train a detector: MMDetection's interface, on MMEngine's Runner."""

import argparse

import mmpsbn.cli  # noqa: F401  It checks the stack, so it is first.

# isort: split
from mmpsbn.checkpoints.matching import check_any_fits, check_compatible
from mmpsbn.cli.arguments import add_run_arguments
from mmpsbn.cli.errors import exit_with_message
from mmpsbn.cli.runner import build_runner, set_amp, set_auto_scale_lr
from mmpsbn.config.data import check_data
from mmpsbn.config.data_errors import explain_data_errors
from mmpsbn.config.errors import explain_config_errors
from mmpsbn.config.reading import TRAINING_LOADERS, load_config
from mmpsbn.config.start import check_start, set_resume


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint, or from the newest in the work dir',
    )
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by the batch size',
    )
    add_run_arguments(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    if args.amp:
        set_amp(cfg)
    if args.auto_scale_lr:
        set_auto_scale_lr(cfg)
    checkpoint, done = None, 0
    if args.resume:
        checkpoint = set_resume(cfg, None if args.resume == 'auto' else args.resume)
    elif cfg.get('resume'):
        checkpoint = set_resume(cfg, cfg.get('load_from'))
    check_data(cfg, TRAINING_LOADERS)
    start = check_start(cfg)
    with explain_config_errors(), explain_data_errors(cfg, TRAINING_LOADERS):
        runner = build_runner(cfg)
        if start:
            check_any_fits(runner.model, start)
        if checkpoint and checkpoint.content:  # DeepSpeed reads its own folders.
            check_compatible(runner.model, checkpoint)
            done, checkpoint = checkpoint.meta.get('iter', 0), None
        runner.train()
        if done >= runner.max_iters and runner.val_loop:
            # The last evaluation follows the last checkpoint: it may be all
            # that an interrupted run lacks.
            runner.val()


if __name__ == '__main__':
    with exit_with_message('--resume continues from the last checkpoint'):
        main()
