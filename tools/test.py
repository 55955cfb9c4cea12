"""Evaluate a checkpoint: MMDetection's interface, on MMEngine's Runner."""

import argparse
import os.path as osp

import mmpsbn.cli  # noqa: F401  It checks the stack, so it is first.

# isort: split
from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults

from mmpsbn.checkpoints.matching import check_compatible
from mmpsbn.checkpoints.reading import read_checkpoint
from mmpsbn.cli.arguments import add_run_arguments
from mmpsbn.cli.errors import exit_with_message
from mmpsbn.cli.runner import build_runner, set_tta
from mmpsbn.config.data import check_data
from mmpsbn.config.data_errors import explain_data_errors
from mmpsbn.config.errors import explain_config_errors
from mmpsbn.config.reading import load_config
from mmpsbn.errors import InputError
from mmpsbn.files import output_files

TEST_LOADERS = ('test_dataloader',)


class AtomicDetResults(DumpDetResults):
    """Predictions in a file that is never seen half-written."""

    def compute_metrics(self, results: list) -> dict:
        with output_files(self.out_file_path) as (self.out_file_path,):
            return super().compute_metrics(results)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='write the predictions to this .pkl')
    parser.add_argument(
        '--show', action='store_true', help='show each image with its boxes'
    )
    parser.add_argument(
        '--show-dir',
        help='write each image, with the ground truth next to the detections, to this '
        "folder of the run's folder in the work dir",
    )
    parser.add_argument('--wait-time', type=float, default=2, help='seconds for --show')
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation: the config's, or horizontal flips",
    )
    add_run_arguments(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise InputError(
            f'--out {args.out} is not supported: the file name must end in .pkl or '
            '.pickle. Try --out predictions.pkl.'
        )
    if args.out:
        with output_files(args.out):
            pass  # Says now, not after the evaluation, if it cannot be.
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
    checkpoint = read_checkpoint(args.checkpoint)
    check_data(cfg, TEST_LOADERS)
    # The work dir of a resumed training has a config that resumes.
    cfg.load_from, cfg.resume = args.checkpoint, False
    tta = set_tta(cfg) if args.tta else None
    with explain_config_errors(), explain_data_errors(cfg, TEST_LOADERS):
        if args.show or args.show_dir:
            trigger_visualization_hook(cfg, args)
            # DetVisualizationHook joins a relative folder again for every batch.
            cfg.work_dir = osp.abspath(cfg.work_dir)
        runner = build_runner(cfg)
        if tta:
            runner.register_hook(tta)
        check_compatible(runner.model, checkpoint)
        if args.out:
            runner.test_evaluator.metrics.append(
                AtomicDetResults(out_file_path=args.out)
            )
        runner.test()


if __name__ == '__main__':
    with exit_with_message():
        main()
