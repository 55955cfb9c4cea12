"""Evaluate a checkpoint: MMDetection's interface, on MMEngine's Runner."""

import argparse
import os.path as osp

import mmpsbn.engine  # noqa: F401  First: it checks the stack.

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults

from mmpsbn.engine.blame import blamed_on_config
from mmpsbn.engine.checkpoint import check_fits, read_checkpoint
from mmpsbn.engine.cli import add_run_arguments, told_to_the_user
from mmpsbn.engine.config import load_config
from mmpsbn.engine.data import blamed_on_data, check_data
from mmpsbn.errors import InputError
from mmpsbn.engine.runner import build_runner
from mmpsbn.engine.whole_files import replacing

LOADERS = ('test_dataloader', )


class WholeDetResults(DumpDetResults):
    """Predictions in a file that is never seen half-written."""

    def compute_metrics(self, results: list) -> dict:
        with replacing(self.out_file_path) as (self.out_file_path, ):
            return super().compute_metrics(results)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='write the predictions to this .pkl')
    parser.add_argument(
        '--show', action='store_true', help='show each image with its boxes')
    parser.add_argument(
        '--show-dir',
        help='write each image, truth beside detections, to this folder of '
        "the run's folder in the work dir")
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds for --show')
    add_run_arguments(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise InputError(f'--out {args.out} must end in .pkl or .pickle.')
    if args.out:
        with replacing(args.out):
            pass  # Says now, not after the evaluation, if it cannot be.
    cfg = load_config(args.config, args.cfg_options, args.work_dir,
                      args.launcher)
    checkpoint = read_checkpoint(args.checkpoint)
    check_data(cfg, LOADERS)
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        cfg = trigger_visualization_hook(cfg, args)
        # DetVisualizationHook joins a relative folder again for every batch.
        cfg.work_dir = osp.abspath(cfg.work_dir)
    with blamed_on_config(), blamed_on_data(cfg, LOADERS):
        runner = build_runner(cfg)
        check_fits(runner.model, checkpoint, args.checkpoint)
        if args.out:
            runner.test_evaluator.metrics.append(
                WholeDetResults(out_file_path=args.out))
        runner.test()


if __name__ == '__main__':
    with told_to_the_user():
        main()
