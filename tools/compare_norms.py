"""Train one detector with several normalizations, and report the results.

Each normalization replaces the norm layers of the config, with the
convolutions and heads that belong to it (MimicNorm), or in evaluation mode
(FrozenBN, and norm_eval, MMDetection's default). All runs start from the
config's load_from, a detector with BN, and convert it if necessary. The report
compares each normalization with the first of --norms, paired by seed. With
--tune, learning rates are chosen on held-out training images, and only the
final runs are evaluated on the validation set.

The same command resumes after an interruption. Finished runs are not repeated,
and more --norms, --lrs, --lengths and --seeds can be added later. The command
writes report.md, report.html and figures into the work dir.
"""

import argparse
import math
import os.path as osp
import shlex
import sys
from pathlib import Path

import mmpsbn.cli  # noqa: F401  It checks the stack, so it is first.

# isort: split
from mmengine.logging import MMLogger

from mmpsbn.cli.arguments import add_cfg_options
from mmpsbn.cli.errors import exit_with_message, interrupt_on_signals
from mmpsbn.cluster import add_cluster_arguments, make_cluster
from mmpsbn.compare import NORMALIZATIONS, Comparison, replace_norm, run_comparison
from mmpsbn.compare.placing import check_norms
from mmpsbn.compare.processes import divide_machine
from mmpsbn.compare.session import load_costs, print_plan
from mmpsbn.config.data import check_data
from mmpsbn.config.reading import TRAINING_LOADERS, read_config
from mmpsbn.config.start import check_start
from mmpsbn.errors import InputError

# MMDetection's default for the processes of a Slurm job.
CPUS_PER_PROCESS = 5
# Options that are numbers of something, with their defaults.
COUNTS = {
    '--seeds': (3, 'number of seeds, each with one final run of every setting'),
    '--tune-seeds': (1, 'number of tuning runs of each learning rate'),
    '--processes': (1, "processes (GPUs) of each run, started by torch's launcher"),
    '--at-once': (1, 'parallel runs, each on its own GPUs, cores or cluster job'),
    '--rounds': (5, 'rounds of timing a training step'),
}


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config of a detector with any normalization')
    parser.add_argument(
        '--norms',
        nargs='+',
        default=['BN', 'psBN', 'MimicNorm'],
        metavar='NORM',
        help=f'one or more of {", ".join(NORMALIZATIONS)}; BN+LastBN is BN in '
        "the body and MimicNorm's last BN in the heads, MimicBody is MimicNorm's "
        "body with the config's heads",
    )
    parser.add_argument(
        '--lrs',
        type=float,
        nargs='+',
        default=[],
        help="learning rates; by default the config's",
    )
    parser.add_argument(
        '--tune',
        type=float,
        metavar='SHARE',
        help='choose each learning rate on this share of the training images, '
        'which is held out; by default on the validation set',
    )
    parser.add_argument(
        '--lengths',
        type=float,
        nargs='+',
        default=[1],
        help="lengths of training, as multiples of the config's schedule",
    )
    for name, (default, text) in COUNTS.items():
        parser.add_argument(name, type=int, default=default, help=text)
    parser.add_argument('--work-dir', help='folder of the runs and the report')
    parser.add_argument(
        '--dry-run', action='store_true', help='print the runs and their estimated time'
    )
    add_cluster_arguments(parser)
    add_cfg_options(parser)
    return parser.parse_args()


def check_arguments(args):
    check_norms(args.norms)
    for name in COUNTS:
        number = getattr(args, name[2:].replace('-', '_'))
        if number < 1:
            raise InputError(
                f'{name} {number} is not supported: it must be at least 1. '
                f'Try {name} {COUNTS[name][0]}.'
            )
    if args.tune is None and args.tune_seeds > 1:
        raise InputError(
            f'--tune-seeds {args.tune_seeds} has no effect without --tune, because '
            'nothing is tuned. Add --tune 0.2, or leave --tune-seeds out.'
        )
    for lr in args.lrs:
        if not 0 < lr < math.inf:
            raise InputError(
                f'--lrs {lr:g} is not supported: a learning rate must be positive and '
                'finite. Try --lrs 0.01.'
            )


def main():
    args = parse_args()
    check_arguments(args)
    name = osp.splitext(osp.basename(args.config))[0]
    work_dir = args.work_dir or osp.join('work_dirs', f'compare_{name}')
    cluster = make_cluster(
        args,
        Path(work_dir, 'jobs'),
        gpus=args.processes,
        cpus=CPUS_PER_PROCESS * args.processes,
    )
    environments = [{}] * args.at_once
    if args.cluster != 'slurm':
        environments = divide_machine(args.at_once, args.processes)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    cfg = read_config(args.config, args.cfg_options)
    check_data(cfg, TRAINING_LOADERS)
    check_start(cfg)
    cfgs = {norm: replace_norm(cfg, norm) for norm in args.norms}
    comparison = Comparison(
        cfg,
        cfgs,
        args.lrs,
        range(args.seeds),
        work_dir,
        processes=args.processes,
        lengths=args.lengths,
        tune=args.tune,
        tune_seeds=args.tune_seeds,
        cluster=cluster,
    )
    if args.dry_run:
        costs = load_costs(comparison, args.rounds, keep=False)
        print_plan(comparison, costs, args.at_once)
        return
    comparison.write()
    run_comparison(
        comparison,
        load_costs(comparison, args.rounds),
        environments=environments,
        command=shlex.join(['python', 'tools/compare_norms.py', *sys.argv[1:]]),
    )


if __name__ == '__main__':
    interrupt_on_signals()
    with exit_with_message('the same command resumes from here'):
        main()
