"""psBN and MimicNorm on a GPU: correctness, time and memory.

    python -m benchmarks.gpu --out DIR

It needs CUDA, torch and torchvision, and neither MMCV nor MMEngine. It writes
DIR/gpu.md after each measurement. No measurement begins after --minutes, and each
receives a share of the time that remains. A measurement that fails is reported in
gpu.md and does not end the run. Figures need matplotlib.

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
from .page import Page

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
    parser.add_argument('--out', type=Path, required=True, help='folder of gpu.md')
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
    if min(args.minutes, args.size, *args.batches) <= 0:
        parser.error('--minutes, --size and --batches must be positive')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error(
            'torch sees no GPU. Run the command on a machine with CUDA, or try it '
            'with --device cpu --network resnet18 --size 64 --batches 2.'
        )
    if args.long and not args.data_root:
        parser.error('--long trains on CIFAR-10, so it needs --data-root')
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


def attempt(page: Page, part: str, name: list[str], measure: Callable, clock) -> None:
    """Add the row of a measurement, or why there is none."""
    try:
        row = measure() if clock.left(part) > 0 else [*name, OVER]
    except InputError:
        raise
    except Exception as error:  # Whatever CUDA or a compiler reports.
        row = [*name, f'failed: {describe_error(error)}'.replace('|', '/')]
    page.add(part, row)
    page.write()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_correctness(page: Page, clock: Clock, args) -> None:
    def row(way: str) -> list[str]:
        if args.device == 'cpu' and way in correctness.CUDA_ONLY:
            return [way, 'not run, because it needs CUDA']
        errors = correctness.check(way, args.device)
        numbers = [f'{errors[norm]:.1e}' for norm in ('BN', 'psBN')]
        return [way, *numbers, 'yes' if correctness.passes(errors) else 'NO']

    for way in correctness.WAYS:
        attempt(page, 'Correctness', [way], lambda: row(way), clock)


def measure_times(page: Page, clock: Clock, args) -> None:
    # The most important measurements are first.
    todo = [
        (action, precision, batch)
        for precision in reversed(cost.PRECISIONS)
        for action in cost.ACTIONS
        for batch in args.batches
    ]
    for number, (action, precision, batch) in enumerate(todo):
        share = clock.left('Time') / (len(todo) - number)
        attempt(
            page,
            'Time',
            [action, precision, str(batch)],
            lambda: cost.times(action, precision, batch, share / 2, args),
            clock,
        )


def measure_memory(page: Page, clock: Clock, args) -> None:
    bn: dict[str, float] = {}

    def row(norm: str) -> list[str]:
        found = cost.memory(norm, args)
        if norm == 'BN':
            bn.update(found)
        cells = [norm]
        for name, value in found.items():
            ratio = f'{value / bn[name]:.3f}' if bn.get(name) else '-'
            cells += [f'{value:.0f}', ratio]
        return cells

    for norm in NORMS:
        attempt(page, 'Memory', [norm], lambda: row(norm), clock)


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


def train_studies(page: Page, args) -> None:
    for study in STUDIES:
        done = subprocess.run(study_command(study, args))
        outcome = (
            'has finished'
            if not done.returncode
            else f'ended with status {done.returncode}, and its messages say why'
        )
        page.end.append(
            f'The study `benchmarks.{study}` on CIFAR-10 {outcome}. Its files are in '
            f'`{args.out / study}`.'
        )
        page.write()


def main() -> None:
    args = parse_args()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        if {'Time', 'Memory'} & {*args.parts}:
            build('BN', args.network)  # Raises without torchvision.
        page = Page(
            args.out,
            args.device,
            network=args.network,
            size=args.size,
            batch=max(args.batches),
            steps=correctness.STEPS,
            times=correctness.TIMES,
            least=correctness.LEAST,
        )
        clock = Clock(60 * args.minutes)
        for part in args.parts:
            MEASURE[part](page, clock, args)
        page.draw()
        page.write()
        if args.long:
            train_studies(page, args)
    except InputError as error:
        sys.exit(f'error: {error}')
    except OSError as error:
        sys.exit(f'error: {error.filename} cannot be written: {error.strerror}')
    print(f'Page: {args.out / "gpu.md"}')


if __name__ == '__main__':
    main()
