"""Filter collapse under BN, and what psBN makes of it: the one command.

    python benchmarks/collapse/run.py [--quick]

Trains every variant of experiments.py with every seed, as many trainings at a
time as there are cores, one thread each, and writes report.md with tables and
figures. Each result is a line of results.jsonl: the same command goes on after
an interruption, repeats nothing, and makes the report anew from the lines.
"""

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Dict, Optional, Sequence

import torch

from data import DATA, load
from experiments import EXPERIMENTS, Settings, with_starts
from mmpsbn.engine.whole_files import write_whole
from mmpsbn.errors import InputError
from report import write_report
from training import file_of, train

RESULTS, WEIGHTS = 'results.jsonl', 'weights'
QUICK = dict(seeds=2, epochs=5)


def read_results(file: Path) -> Dict[str, dict]:
    """Results by the key of their settings.

    A line that a kill has cut short is taken out.
    """
    text = file.read_text() if file.exists() else ''
    whole = text[:text.rfind('\n') + 1]
    if whole != text:
        write_whole(file, whole.encode())
    lines = [json.loads(line) for line in whole.splitlines()]
    return {
        json.dumps(line['settings'], sort_keys=True): line['result']
        for line in lines
    }


def train_all(jobs: Sequence[Settings], results: Dict[str, dict], out: Path,
              root: Optional[str], processes: int, device: str) -> None:
    """Train what has no result yet; first those that others start from."""
    weights = out / WEIGHTS
    weights.mkdir(parents=True, exist_ok=True)
    starts = {job.start for job in jobs}
    missing = [
        job for job in with_starts(jobs) if job.key not in results or
        (job in starts and not (weights / file_of(job)).exists())
    ]
    if not missing:
        print('Every training has its result.')
        return
    print(f'{len(missing)} trainings, {processes} at a time', flush=True)
    begin, done = time.monotonic(), 0
    with ProcessPoolExecutor(
            processes, multiprocessing.get_context('spawn')) as pool, open(
                out / RESULTS, 'a') as file:
        for wave in ([job for job in missing if job in starts],
                     [job for job in missing if job not in starts]):
            futures = {
                pool.submit(train, job, root, weights, job in starts, device):
                job for job in wave
            }
            try:
                for future in as_completed(futures):
                    job, result = futures[future], future.result()
                    file.write(json.dumps(
                        dict(settings=job.tree(), result=result)) + '\n')
                    file.flush()
                    results[job.key] = result
                    done += 1
                    left = (time.monotonic() - begin) * (len(missing) / done -
                                                         1)
                    print(f'{done}/{len(missing)}: {_line(job, result)}; '
                          f'{left / 60:.1f} min left', flush=True)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _line(job: Settings, result: dict) -> str:
    told = {
        name: value for name, value in job._asdict().items()
        if name not in ('start', 'alpha')
        and value != Settings._field_defaults.get(name)
    }
    said = ', '.join(f'{name} {value}' for name, value in told.items())
    return (f'{job.norm}{f" {job.alpha}" if job.alpha else ""}'
            f'{" from weights" if job.start else ""}, {said}: accuracy '
            f'{result["accuracy"]:.3f}, {result["dead"][-1]} of '
            f'{result["channels"]} dead, {result["seconds"]:.0f} s')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--experiments', nargs='+', choices=EXPERIMENTS,
        default=list(EXPERIMENTS))
    parser.add_argument('--seeds', type=int, default=5, help='how many')
    parser.add_argument('--epochs', type=int, default=30)
    parser.add_argument(
        '--quick', action='store_true',
        help='{seeds} seeds and {epochs} epochs'.format(**QUICK))
    parser.add_argument('--data', choices=DATA, default='digits')
    parser.add_argument(
        '--data-root', help="folder of CIFAR-10's binary version")
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--processes', type=int, default=os.cpu_count())
    parser.add_argument(
        '--out', type=Path, help='by default work_dirs/collapse, and '
        'work_dirs/collapse-quick with --quick')
    args = parser.parse_args()
    if args.quick:
        vars(args).update(QUICK)
    if min(args.seeds, args.epochs, args.processes) < 1:
        parser.error('--seeds, --epochs and --processes are at least 1.')
    out = args.out or Path('work_dirs') / (
        'collapse-quick' if args.quick else 'collapse')
    try:
        load(args.data, args.data_root, None)
    except InputError as error:
        raise SystemExit(str(error)) from None
    jobs = {
        name: EXPERIMENTS[name].jobs(
            args.seeds, data=args.data, epochs=args.epochs)
        for name in args.experiments
    }
    out.mkdir(parents=True, exist_ok=True)
    results = read_results(out / RESULTS)
    train_all([job for own in jobs.values() for job in own], results, out,
              args.data_root, args.processes, args.device)
    print(write_report(jobs, results, out, f'torch {torch.__version__}'))


if __name__ == '__main__':
    main()
