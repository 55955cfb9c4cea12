"""Does a network still learn after it was finetuned many times?

    python -m benchmarks.rounds --data digits
    python -m benchmarks.rounds --data cifar10 --data-root DIR
    python -m benchmarks.rounds

The first two commands train the runs that have no rows yet in the CSV files
of --results, and add their rows as each run ends. They resume after an
interruption, also on another machine that has the CSV files. All three end
with the tables and figures of README.md, which they make from the CSV files.
README.md describes the protocol.
"""

import argparse
import time
from functools import partial
from pathlib import Path

from benchmarks.shared.arguments import (
    add_work_dir,
    check_counts,
    check_device,
    exit_with_message,
    study_parser,
)
from benchmarks.shared.data import DATA
from benchmarks.shared.pool import in_processes
from mmpsbn.cluster import Cluster, add_cluster_arguments, make_cluster, run_jobs

from .results import Results
from .studies import ROUNDS, SEEDS, STUDIES
from .tasks import images
from .training import checkpoint_of, train

FOLDER = Path(__file__).resolve().parent


def parse_args() -> argparse.Namespace:
    parser = study_parser('rounds', __doc__, FOLDER, SEEDS)
    parser.add_argument('--data', choices=DATA, help='without it, nothing is trained')
    parser.add_argument('--data-root', help="folder of CIFAR-10's binary version")
    parser.add_argument(
        '--networks',
        nargs='+',
        choices=('plain', 'residual'),
        default=['plain', 'residual'],
    )
    parser.add_argument('--rounds', type=int, default=ROUNDS, help='how many')
    parser.add_argument('--device', default='cpu')
    add_work_dir(parser, 'rounds', 'checkpoints')
    add_cluster_arguments(parser)
    args = parser.parse_args()
    check_counts(parser, args, 'seeds', 'rounds', 'processes')
    # The machine that submits jobs may have no GPU.
    if args.cluster != 'slurm':
        check_device(parser, args.device)
    return args


def train_missing(
    results: dict[str, Results], args: argparse.Namespace, cluster: Cluster | None
) -> None:
    """Train the runs that have no rows yet, and add their rows."""
    images(args.data, args.data_root, 'cpu')  # Raises if missing.
    jobs = [
        (own.study, run)
        for own in results.values()
        if own.study.data == args.data and own.study.network in args.networks
        for run in own.missing(args.seeds, args.rounds)
    ]

    def record_of(job):
        return checkpoint_of(job, args.work_dir).with_suffix('.job')

    print(f'{len(jobs)} runs are missing, {args.processes} in parallel', flush=True)
    function = partial(
        train,
        rounds=args.rounds,
        work_dir=args.work_dir.absolute(),
        root=args.data_root,
        device=args.device,
    )
    begin = time.monotonic()
    if cluster is None:
        ended = in_processes([(function, jobs)], args.processes)
    else:
        ended = run_jobs(cluster, function, jobs, record_of, args.processes)
    for done, (job, result) in enumerate(ended, 1):
        study, run = job
        results[study.name].add(run, result)
        checkpoint_of(job, args.work_dir).unlink(missing_ok=True)
        left = (time.monotonic() - begin) * (len(jobs) / done - 1)
        last = result[0][-1]
        print(
            f'{done}/{len(jobs)}: {study.name}, {run.method}, lr '
            f'{run.lr:g}, weight decay {run.weight_decay:g}, seed '
            f'{run.seed}: accuracy {last.accuracy:.3f}, '
            f'{100 * last.dead:.0f} % dead; {left / 60:.0f} min left',
            flush=True,
        )
    if jobs:
        print(
            f'{len(jobs)} runs of {args.rounds} rounds took '
            f'{(time.monotonic() - begin) / 60:.1f} min'
        )


def main() -> None:
    args = parse_args()

    def read():
        return {study.name: Results(args.results, study) for study in STUDIES}

    with exit_with_message(args.results):
        if args.data:
            cluster = make_cluster(
                args, args.work_dir / 'jobs', gpus=int(args.device != 'cpu'), cpus=1
            )
            train_missing(read(), args, cluster)
        # The report needs matplotlib, and training does not.
        from .report import write_report

        # Another command may have trained the other data set meanwhile.
        print(f'Report: {write_report(list(read().values()), args.results)}')


if __name__ == '__main__':
    main()
