"""Normalizations compared on real photographs (NEU-DET).

    python -m benchmarks.real_images --data NEU_DET [--at-once 2]
    python -m benchmarks.real_images

The first command trains what has no row yet in the CSV files of --results, and
adds a row as each run ends. It resumes after an interruption, also on another
machine that has the CSV files. Both commands end with the tables and figures
of README.md, which they make from the CSV files. README.md describes the
protocol.
"""

import argparse

from mmengine.logging import MMLogger

import mmpsbn.cli  # noqa: F401  First: it checks the stack.
from benchmarks.shared.arguments import add_work_dir, check_counts, study_parser
from mmpsbn.cli.arguments import add_cfg_options
from mmpsbn.cli.errors import exit_with_message, interrupt_on_signals
from mmpsbn.cluster import add_cluster_arguments, make_cluster
from mmpsbn.compare.processes import divide_machine
from mmpsbn.compare.session import check_failures, load_costs, train_runs

from .report import README, write_report
from .results import Results
from .studies import SEEDS, STUDIES, comparisons

CPUS = 5  # Of a job on a cluster.
FOLDER = README.parent


def parse_args() -> argparse.Namespace:
    parser = study_parser('real_images', __doc__, FOLDER, SEEDS, '--at-once')
    parser.add_argument(
        '--data',
        help="folder of NEU-DET in COCO2017's layout; without it, nothing is trained",
    )
    parser.add_argument('--studies', nargs='+', choices=STUDIES, default=list(STUDIES))
    add_work_dir(parser, 'real_images', 'runs')
    add_cluster_arguments(parser)
    add_cfg_options(parser)
    args = parser.parse_args()
    check_counts(parser, args, 'seeds', 'at_once')
    return args


def main() -> None:
    args = parse_args()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    results = {name: Results(args.results / f'{name}.csv') for name in STUDIES}
    failures = []
    if args.data:
        cluster = make_cluster(args, args.work_dir / 'jobs', gpus=1, cpus=CPUS)
        environments = [{}] * args.at_once
        if args.cluster != 'slurm':
            environments = divide_machine(args.at_once, 1)
        for name in args.studies:
            for comparison in comparisons(
                STUDIES[name],
                results[name],
                args.data,
                args.work_dir / name,
                args.seeds,
                args.cfg_options,
                cluster,
            ):
                comparison.write()
                train_runs(comparison, load_costs(comparison, 3), environments)
                failures.append(comparison)
    print(f'Report: {write_report(results, args.results)}')
    for comparison in failures:
        check_failures(comparison)


if __name__ == '__main__':
    interrupt_on_signals()
    with exit_with_message('the same command resumes from here'):
        main()
