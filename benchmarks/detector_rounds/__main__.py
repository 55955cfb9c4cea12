"""Does a detector still learn after it was finetuned many times?

    python -m benchmarks.detector_rounds --train
    python -m benchmarks.detector_rounds

The first command trains the runs that have no rows yet in the CSV files of
--results, and adds their rows as each run ends. It resumes after an
interruption, also on another machine that has the CSV files. Both commands
end with the tables and figures of README.md, which they make from the CSV
files. README.md describes the protocol.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import mmpsbn.cli  # noqa: F401  First: it checks the stack.
from benchmarks.shared.arguments import add_work_dir, check_counts, study_parser
from benchmarks.shared.pool import in_processes
from mmpsbn.cli.errors import exit_with_message, interrupt_on_signals

from .pilot import FOLDER as PILOT
from .pilot import find_lrs
from .report import write_report
from .results import Results
from .studies import DETECTORS, ROUNDS, SEEDS, make_studies, priority
from .training import checkpoint_of, start_of, train, train_start

FOLDER = Path(__file__).resolve().parent


def parse_args() -> argparse.Namespace:
    parser = study_parser('detector_rounds', __doc__, FOLDER, SEEDS)
    parser.add_argument('--train', action='store_true')
    parser.add_argument(
        '--detectors', nargs='+', choices=DETECTORS, default=list(DETECTORS)
    )
    parser.add_argument('--rounds', type=int, default=ROUNDS, help='how many')
    add_work_dir(parser, 'detector_rounds', 'checkpoints')
    parser.add_argument(
        '--pilot', type=Path, default=PILOT, help="folder of the pilot's CSV files"
    )
    args = parser.parse_args()
    check_counts(parser, args, 'seeds', 'rounds', 'processes')
    return args


def train_missing(results: dict[str, Results], args: argparse.Namespace) -> None:
    """Train the runs that have no rows yet, and add their rows."""
    jobs = [
        (own.study, run)
        for own in results.values()
        if own.study.name in args.detectors
        for run in own.missing(args.seeds, args.rounds)
    ]
    jobs.sort(key=lambda job: priority(job[1]))
    print(f'{len(jobs)} runs are missing, {args.processes} in parallel', flush=True)
    starts = {start_of(job, args.work_dir): job for job in jobs}
    waves = [
        (partial(train_start, work_dir=args.work_dir), list(starts.values())),
        (partial(train, rounds=args.rounds, work_dir=args.work_dir), jobs),
    ]
    begin, done = time.monotonic(), 0
    for job, rows in in_processes(waves, args.processes):
        if rows is None:  # A starting detector.
            continue
        study, run = job
        results[study.name].add(run, rows)
        checkpoint_of(job, args.work_dir).unlink(missing_ok=True)
        done += 1
        left = (time.monotonic() - begin) * (len(jobs) / done - 1)
        print(
            f'{done}/{len(jobs)}: {study.name}, {run.method}, {run.placement}, '
            f'lr {run.lr:g}, seed {run.seed}: mAP {rows[-1].mAP:.3f}, '
            f'{100 * rows[-1].dead:.1f} % dead; {left / 60:.0f} min left',
            flush=True,
        )


def main() -> None:
    args = parse_args()
    studies = make_studies(find_lrs(args.pilot))

    def read():
        return {study.name: Results(args.results, study) for study in studies}

    if args.train:
        train_missing(read(), args)
    # Another command may have trained the other detector meanwhile.
    print(f'Report: {write_report(list(read().values()), args.results)}')


if __name__ == '__main__':
    interrupt_on_signals()
    with exit_with_message('the same command resumes from the last checkpoints'):
        main()
