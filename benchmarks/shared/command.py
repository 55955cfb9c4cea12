"""The command line of a study of classifiers: train what is missing, then report."""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from mmpsbn.errors import InputError

from .arguments import check_counts, check_device, exit_with_message, study_parser
from .data import DATA, load
from .pages import write_sections
from .rows import Rows, add_missing, read_rows
from .settings import Experiment, describe

QUICK = dict(seeds=2, epochs=5)


class Study(NamedTuple):
    """The trainings of a benchmark, and the CSV files with their results."""

    folder: Path
    """The benchmark's own folder, with the committed results."""
    experiments: dict[str, dict[str, Experiment]]
    """The experiments on each data set, by their names."""
    epochs: dict[str, int]
    """The length of a training on each data set."""
    seeds: dict[str, int]
    """The number of seeds on each data set."""
    settings: type[NamedTuple]
    result: type[NamedTuple]

    @property
    def name(self) -> str:
        return self.folder.name

    def jobs(
        self, data: str, seeds: int, epochs: int, names: Sequence[str] = ()
    ) -> list[NamedTuple]:
        """List every training once, although experiments can share trainings.

        Args:
            data (str): The data set.
            seeds (int): The number of seeds.
            epochs (int): The length of a training.
            names (list[str]): The experiments. Defaults to all of them.
        """
        own = self.experiments[data]
        jobs = [
            job
            for name in names or own
            for job in own[name].jobs(self.settings, seeds, epochs)
        ]
        return list(dict.fromkeys(jobs))

    def read(self, folder: Path) -> dict[str, Rows]:
        """Read the results on each data set.

        Raises:
            InputError: If a file is damaged.
        """
        return {
            data: read_rows(folder / f'{data}.csv', self.settings, self.result)
            for data in DATA
        }


def run(study: Study, about: str, train: Callable) -> None:
    """Run the command.

    Args:
        study (Study): The study. Its package has a module ``report``.
        about (str): The beginning of ``--help``.
        train (callable): Returns the result of settings, a data set, its
            folder and a device.
    """
    args = _parse(study, about)
    with exit_with_message(args.results):
        rows = study.read(args.results)
        if args.data:
            train_missing(study, rows[args.data], train, args)
            rows = study.read(args.results)
        print(f'Report: {write_report(study, rows, args.results)}')


def write_report(study: Study, results: dict[str, Rows], folder: Path) -> Path:
    """Write the page and its figures into a folder, and return the page.

    Args:
        study (Study): The study. Its module ``report`` has a function
            ``section``.
        results (dict): The results on each data set.
        folder (Path): The folder.
    """
    # It needs matplotlib, and training does not.
    report = import_module(f'benchmarks.{study.name}.report')
    return write_sections(
        (report.section(data, own, folder) for data, own in results.items() if own),
        folder,
    )


def train_missing(study: Study, rows: Rows, train: Callable, args) -> None:
    """Run the trainings that have no row yet, and add their rows."""
    load(args.data, args.data_root, None)  # Raises if missing.
    file = args.results / f'{args.data}.csv'
    others = {run.epochs for run in rows} - {args.epochs}
    if others:
        raise InputError(
            f'{file} has trainings of {min(others)} epochs, and these would have '
            f'{args.epochs}. Choose another folder with --results.'
        )
    jobs = [
        job
        for job in study.jobs(args.data, args.seeds, args.epochs, args.experiments)
        if job not in rows
    ]
    print(f'{len(jobs)} trainings are missing, {args.processes} in parallel')
    function = partial(train, data=args.data, root=args.data_root, device=args.device)
    begin = time.monotonic()
    for done, (job, result) in enumerate(
        add_missing(file, function, jobs, study.result, args.processes), 1
    ):
        left = (time.monotonic() - begin) * (len(jobs) / done - 1)
        print(
            f'{done}/{len(jobs)}: {describe(job)}: accuracy {result.accuracy:.3f}, '
            f'{result.seconds:.0f} s; {left / 60:.1f} min left',
            flush=True,
        )


def _parse(study: Study, about: str) -> argparse.Namespace:
    parser = study_parser(study.name, about, study.folder)
    parser.add_argument('--data', choices=DATA, help='without it, nothing is trained')
    parser.add_argument('--data-root', help="folder of CIFAR-10's binary version")
    parser.add_argument(
        '--experiments',
        nargs='+',
        default=[],
        metavar='NAME',
        help='; '.join(
            f'of {data}: {", ".join(own)}' for data, own in study.experiments.items()
        ),
    )
    parser.add_argument('--epochs', type=int)
    quick = Path('work_dirs') / f'{study.name}-quick'
    parser.add_argument(
        '--quick',
        action='store_true',
        help=f'{QUICK["seeds"]} seeds and {QUICK["epochs"]} epochs, in {quick}',
    )
    parser.add_argument('--device', default='cpu')
    # The default depends on --quick.
    parser.set_defaults(results=None)
    args = parser.parse_args()
    if args.quick:
        for name, value in QUICK.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
    args.results = args.results or (quick if args.quick else study.folder)
    if args.data:
        args.epochs = study.epochs[args.data] if args.epochs is None else args.epochs
        args.seeds = study.seeds[args.data] if args.seeds is None else args.seeds
        unknown = set(args.experiments) - set(study.experiments[args.data])
        if unknown:
            parser.error(
                f'--experiments {", ".join(sorted(unknown))}: there is no such '
                f'experiment on {args.data}. Choose from '
                f'{", ".join(study.experiments[args.data])}.'
            )
        check_counts(parser, args, 'seeds', 'epochs', 'processes')
        check_device(parser, args.device)
    return args
