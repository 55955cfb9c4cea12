"""The command line of a benchmark: train what is missing, then report."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch

from mmpsbn.errors import InputError

from .data import DATA, load
from .pool import RESULTS, read_results
from .settings import Experiment

QUICK = dict(seeds=2, epochs=5)


def run(
    name: str,
    about: str,
    experiments: dict[str, dict[str, Experiment]],
    make: Callable,
    epochs: dict[str, int],
    train: Callable,
    report: Callable,
) -> None:
    """The one command.

    Args:
        name (str): Of the benchmark, and of its folder in work_dirs.
        about (str): What ``--help`` begins with.
        experiments (dict): For each data set, by their names.
        make (callable): See :meth:`Experiment.jobs`.
        epochs (dict): Of a training, for each data set.
        train (callable): Trains what has no result yet; of jobs, results,
            the folder, ``--data-root``, ``--processes`` and ``--device``.
        report (callable): Writes the report; of the jobs of each experiment,
            results, the folder and versions. It gives its path.
    """
    args = _parse(name, about, experiments, epochs)
    try:
        load(args.data, args.data_root, None)
    except InputError as error:
        raise SystemExit(str(error)) from None
    jobs = {
        name: experiments[args.data][name].jobs(
            make, args.seeds, data=args.data, epochs=args.epochs
        )
        for name in args.experiments
    }
    args.out.mkdir(parents=True, exist_ok=True)
    results = read_results(args.out / RESULTS)
    train(
        [job for own in jobs.values() for job in own],
        results,
        args.out,
        args.data_root,
        args.processes,
        args.device,
    )
    try:
        print(report(jobs, results, args.out, f'torch {torch.__version__}'))
    except ImportError as error:
        raise SystemExit(missing_for_report(args.out, error)) from None


def missing_for_report(out: Path, error: ImportError) -> str:
    """Return a message for a report that needs a missing package."""
    return (
        f'error: the results are in {out}, but their report needs {error.name}, '
        'which is not installed. Install it, and repeat the command.'
    )


def _parse(name, about, experiments, epochs) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f'python -m benchmarks.{name}',
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--experiments',
        nargs='+',
        metavar='NAME',
        help='; '.join(
            f'of {data}: {", ".join(own)}' for data, own in experiments.items()
        ),
    )
    parser.add_argument('--seeds', type=int, default=5, help='how many')
    parser.add_argument('--epochs', type=int)
    parser.add_argument(
        '--quick',
        action='store_true',
        help='{seeds} seeds and {epochs} epochs'.format(**QUICK),
    )
    parser.add_argument('--data', choices=DATA, default='digits')
    parser.add_argument('--data-root', help="folder of CIFAR-10's binary version")
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--processes', type=int, default=os.cpu_count())
    parser.add_argument(
        '--out',
        type=Path,
        help=f'by default work_dirs/{name}, and work_dirs/{name}-quick with --quick',
    )
    args = parser.parse_args()
    if args.quick:
        vars(args).update(QUICK)
    if args.epochs is None:
        args.epochs = epochs[args.data]
    if args.experiments is None:
        args.experiments = list(experiments[args.data])
    unknown = set(args.experiments) - set(experiments[args.data])
    if unknown:
        parser.error(
            f'--experiments {", ".join(sorted(unknown))}: there is no such '
            f'experiment on {args.data}. Choose from '
            f'{", ".join(experiments[args.data])}.'
        )
    if min(args.seeds, args.epochs, args.processes) < 1:
        parser.error('--seeds, --epochs and --processes are at least 1.')
    args.out = args.out or Path('work_dirs') / (f'{name}-quick' if args.quick else name)
    return args
