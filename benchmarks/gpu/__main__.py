"""psBN and MimicNorm on a GPU: correctness, time and memory.

    python -m benchmarks.gpu --out DIR

It needs CUDA, torch and torchvision, and neither MMCV nor MMEngine. It writes
DIR/gpu.csv after each measurement, and the tables and figures at the end: to
DIR/report.md, or between the marks of DIR/README.md. No measurement begins after
--minutes, and each receives a share of the time that remains. A measurement that fails
is reported and does not end the run. Figures need matplotlib.

    python -m benchmarks.gpu --report DIR

writes the tables and figures of DIR/gpu.csv again, without a GPU.

With --long, the studies of repeated finetuning and the classifiers on CIFAR-10 follow
at full size, which takes hours. Their tables also need MMEngine and SciPy.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mmpsbn.errors import InputError, describe_error

from . import correctness, cost
from .networks import NORMS, build
from .page import COLUMNS, Results, write_report

STUDIES = ('rounds', 'collapse', 'mimicnorm')
# At which part of the time a part must have ended.
ENDS = {'Correctness': 0.4, 'Time': 0.75, 'Memory': 1.0}
OVER = 'not run, because the time was over'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.gpu',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    folder = parser.add_mutually_exclusive_group(required=True)
    folder.add_argument('--out', type=Path, metavar='DIR', help='folder of gpu.csv')
    folder.add_argument('--report', type=Path, metavar='DIR', help='measure nothing')
    parser.add_argument('--minutes', type=float, default=7, help='default: 7')
    parser.add_argument('--network', default='resnet50', help='a ResNet of torchvision')
    parser.add_argument('--size', type=int, default=224, help='of the images')
    parser.add_argument('--batches', type=int, nargs='+', default=[32, 64, 128, 256])
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument(
        '--parts', nargs='+', choices=ENDS, default=list(ENDS), help='default: all'
    )
    parser.add_argument('--long', action='store_true', help='also train the studies')
    parser.add_argument('--data-root', help="folder of CIFAR-10's binary version")
    args = parser.parse_args()
    if args.report:
        return args
    if min(args.minutes, args.size, *args.batches) <= 0:
        parser.error('--minutes, --size and --batches must be positive')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error(
            'torch sees no GPU. Run the command on a machine with CUDA, or try it '
            'with --device cpu --network resnet18 --size 64 --batches 2.'
        )
    if args.long and not args.data_root:
        parser.error('--long trains on CIFAR-10, so it needs --data-root')
    if args.long and not any(Path(args.data_root).glob('data_batch_*')):
        parser.error(
            f'--data-root {args.data_root} has no data_batch_*.bin; unpack '
            "CIFAR-10's binary version there"
        )
    return args


class Clock:
    """The time that a part of the run has left.

    Args:
        seconds (float): The time of the run.
    """

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.monotonic(), seconds

    def left(self, part: str) -> float:
        return self.start + ENDS[part] * self.seconds - time.monotonic()


def attempt(results: Results, part: str, name: str, measure: Callable, clock) -> None:
    """Add the row of a measurement, or why there is none."""
    try:
        cells = measure() if clock.left(part) > 0 else OVER
    except InputError:
        raise
    except Exception as error:  # Whatever CUDA or a compiler reports.
        cells = f'failed: {describe_error(error)}'.replace('|', '/')
    results.add(
        part, name, {COLUMNS[part][0]: cells} if isinstance(cells, str) else cells
    )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_correctness(results: Results, clock: Clock, args) -> None:
    def row(way: str) -> dict[str, str] | str:
        if args.device == 'cpu' and way in correctness.CUDA_ONLY:
            return 'not run, because it needs CUDA'
        errors = correctness.check(way, args.device)
        numbers = [f'{errors[norm]:.1e}' for norm in ('BN', 'psBN')]
        cells = [*numbers, 'yes' if correctness.passes(errors) else 'NO']
        return dict(zip(COLUMNS['Correctness'], cells))

    for way in correctness.WAYS:
        attempt(results, 'Correctness', way, lambda: row(way), clock)


def measure_times(results: Results, clock: Clock, args) -> None:
    # The most important measurements are first.
    todo = [
        (action, precision, batch)
        for precision in reversed(cost.PRECISIONS)
        for action in cost.ACTIONS
        for batch in args.batches
    ]

    def row(*what) -> dict[str, str]:
        return dict(zip(COLUMNS['Time'], cost.times(*what, args)))

    for number, what in enumerate(todo):
        share = clock.left('Time') / (len(todo) - number)
        name = ' | '.join(map(str, what))
        attempt(results, 'Time', name, lambda: row(*what, share / 2), clock)


def measure_memory(results: Results, clock: Clock, args) -> None:
    def row(norm: str) -> dict[str, str]:
        found = cost.memory(norm, args)
        return {
            column: f'{value:.0f}' for column, value in zip(COLUMNS['Memory'], found)
        }

    for norm in NORMS:
        attempt(results, 'Memory', norm, lambda: row(norm), clock)


MEASURE = {
    'Correctness': measure_correctness,
    'Time': measure_times,
    'Memory': measure_memory,
}


def study_command(study: str, args) -> list[str]:
    """Return the command that trains a study at full size."""
    command = [sys.executable, '-m', f'benchmarks.{study}', '--data', 'cifar10']
    command += ['--data-root', args.data_root, '--device', args.device]
    folder = args.out / study
    command += ['--results', str(folder)]
    if study == 'rounds':
        folder.mkdir(parents=True, exist_ok=True)
        command += ['--work-dir', f'{folder}/work']
    return command


def train_studies(results: Results, args) -> None:
    """Train the studies.

    Raises:
        InputError: If one of them has failed; the others have been trained.
    """
    failed = []
    for study in STUDIES:
        done = subprocess.run(study_command(study, args))
        outcome = 'has finished'
        if done.returncode:
            outcome = f'ended with status {done.returncode}, and its messages say why'
            failed.append(study)
        results.add('Studies', study, {COLUMNS['Studies'][0]: outcome})
        write_report(args.out)
    if failed:
        raise InputError(
            f'{" and ".join(failed)} failed, see the messages above. The same command '
            'measures again and resumes the studies.'
        )


def measure(args) -> None:
    """Run all parts, and write their results."""
    args.out.mkdir(parents=True, exist_ok=True)
    if {'Time', 'Memory'} & {*args.parts}:
        build('BN', args.network)  # Raises without torchvision.
    results = Results(
        args.out,
        args.device,
        network=args.network,
        size=str(args.size),
        batch=str(max(args.batches)),
    )
    clock = Clock(60 * args.minutes)
    for part in args.parts:
        MEASURE[part](results, clock, args)
    if args.long:
        write_report(args.out)
        train_studies(results, args)


def main() -> None:
    args = parse_args()
    try:
        if args.out:
            measure(args)
        print(f'Page: {write_report(args.out or args.report)}')
    except InputError as error:
        sys.exit(f'error: {error}')
    except OSError as error:
        sys.exit(f'error: {error.filename} cannot be read or written: {error.strerror}')


if __name__ == '__main__':
    main()
