"""Train one detector with several normalizations, and report.

Every normalization is placed where the config has one: with its convs and
heads (MimicNorm), in evaluation mode (FrozenBN), and so on. The runs go
through tools/train.py, one after another or several --at-once. The same
command goes on after an interruption; finished runs are not repeated, and more
--norms, --lrs and --seeds can be added later. It ends with report.md,
report.html and figures in the work dir.
"""

import argparse
import json
import os.path as osp
import shlex
import signal
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from queue import SimpleQueue

import mmpsbn  # noqa: F401  First: it checks the stack.

from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import (BarColumn, Progress, TaskProgressColumn,
                           TextColumn, TimeElapsedColumn)

from mmpsbn.compare import (NORMS, Comparison, Cost, measure_costs,
                            write_report)
from mmpsbn.compare.placing import check_norms
from mmpsbn.compare.runs import shares_of_machine
from mmpsbn.engine.cli import add_cfg_options, told_to_the_user
from mmpsbn.engine.config import check_start, read_config
from mmpsbn.engine.data import blamed_on_data, check_data
from mmpsbn.engine.whole_files import write_whole
from mmpsbn.errors import InputError

COSTS = 'costs.json'
LOADERS = ('train_dataloader', 'val_dataloader')


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of a detector, with any normalization')
    parser.add_argument(
        '--norms',
        nargs='+',
        default=['BN', 'psBN', 'MimicNorm'],
        metavar='NORM',
        help=f'of {", ".join(NORMS)}')
    parser.add_argument(
        '--seeds', type=int, default=3, help='how many runs of each')
    parser.add_argument(
        '--lrs',
        type=float,
        nargs='+',
        default=[],
        help="learning rates; by default the config's")
    parser.add_argument('--work-dir', help='folder of the runs and the report')
    parser.add_argument(
        '--processes',
        type=int,
        default=1,
        help="of each run, by torch's launcher: the number of GPUs")
    parser.add_argument(
        '--at-once',
        type=int,
        default=1,
        help='how many runs side by side, each on its own GPUs, or on its '
        'share of the cores')
    parser.add_argument(
        '--rounds', type=int, default=5, help='of timing a training step')
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='print the runs and the time that they will take')
    add_cfg_options(parser)
    return parser.parse_args()


def check_arguments(args):
    check_norms(args.norms)
    for name in ('seeds', 'processes', 'at_once', 'rounds'):
        if getattr(args, name) < 1:
            raise InputError(f'--{name.replace("_", "-")} '
                             f'{getattr(args, name)}: at least 1.')
    for lr in args.lrs:
        if not lr > 0:
            raise InputError(f'--lrs {lr:g}: a learning rate is above 0.')


def costs_of(comparison, rounds, keep):
    """Measured once for each set of normalizations, before any run."""
    file = comparison.work_dir / COSTS
    if file.exists():
        found = json.loads(file.read_text())
        if set(comparison.cfgs) <= set(found):
            return {norm: Cost(*found[norm]) for norm in comparison.cfgs}
    print('Timing a training step with each normalization ...', flush=True)
    with blamed_on_data(comparison.cfg, LOADERS):
        costs = measure_costs(comparison.cfgs, rounds)
    if keep:
        write_whole(file, json.dumps(costs).encode())
    return costs


def in_words(seconds):
    minutes = round(seconds / 60)
    if minutes < 1:
        return f'{seconds:.0f} s'
    return f'{minutes // 60} h {minutes % 60} min' if minutes > 90 else \
        f'{minutes} min'


def left(comparison, costs, at_once, shares=None):
    """Seconds that the runs not yet ended will take.

    ``shares`` are what runs in progress have behind them.
    """
    shares = shares or {}
    return sum((1 - shares.get(run, comparison.done(run))) *
               comparison.estimate(run, costs) for run in comparison.runs
               if run not in comparison.failures) / at_once


def print_plan(comparison, costs, at_once):
    for run in comparison.runs:
        done, seconds = comparison.done(run), comparison.estimate(run, costs)
        state = 'finished' if comparison.result(run) else (
            f'{done:.0%} done' if done else in_words(seconds))
        print(f'  {str(run):40}{state:>12}')
    for remark in comparison.remarks():
        print(remark)
    print(f'About {in_words(left(comparison, costs, at_once))} to go, on this '
          'machine.')


def train(comparison, costs, environments):
    runs, at_once, shares = comparison.runs, len(environments), {}
    free = SimpleQueue()
    for environment in environments:
        free.put(environment)
    columns = (TextColumn('{task.description}'), BarColumn(),
               TaskProgressColumn(), TimeElapsedColumn(),
               TextColumn('{task.fields[left]}'))
    console = Console()

    def train_one(number, run):
        if comparison.result(run):
            return
        task = progress.add_task(str(run), total=1., left='')

        def watch(share):
            shares[run] = share
            seconds = left(comparison, costs, at_once, dict(shares))
            progress.update(
                task, completed=share, left=f'all: {in_words(seconds)} left')

        environment = free.get()
        well = comparison.run(run, watch, environment)
        free.put(environment)
        shares[run] = 1.
        progress.remove_task(task)
        seconds = left(comparison, costs, at_once, dict(shares))
        words = f'done, {in_words(seconds)} left' if well else \
            f'failed: {comparison.failures[run]}'
        print(f'[{number}/{len(runs)}] {run}: {words}', flush=True)

    with Progress(*columns, console=console, transient=True,
                  disable=not console.is_terminal
                  ) as progress, ThreadPoolExecutor(at_once) as pool:
        try:
            for future in as_completed([
                    pool.submit(train_one, number, run)
                    for number, run in enumerate(runs, 1)
            ]):
                future.result()
        except BaseException:
            comparison.interrupt()
            pool.shutdown(cancel_futures=True)
            raise


def main():
    args = parse_args()
    check_arguments(args)
    environments = shares_of_machine(args.at_once, args.processes)
    MMLogger.get_instance('mmengine', log_level='ERROR')
    cfg = read_config(args.config, args.cfg_options)
    check_data(cfg, LOADERS)
    check_start(cfg)
    name = osp.splitext(osp.basename(args.config))[0]
    work_dir = args.work_dir or osp.join('work_dirs', f'compare_{name}')
    comparison = Comparison(cfg, list(dict.fromkeys(args.norms)), args.lrs,
                            range(args.seeds), work_dir, args.processes)
    if args.dry_run:
        print_plan(comparison, costs_of(comparison, args.rounds, False),
                   args.at_once)
        return
    try:
        comparison.write()
    except OSError as error:
        raise InputError(f'the work dir {work_dir} cannot be written: '
                         f'{error.strerror}') from error
    costs = costs_of(comparison, args.rounds, True)
    print_plan(comparison, costs, args.at_once)
    train(comparison, costs, environments)
    command = shlex.join(['python', 'tools/compare_norms.py', *sys.argv[1:]])
    page = write_report(comparison, costs, command)
    if page:
        print(f'\nReport: {page}')
    if comparison.failures:
        raise InputError(
            f'{len(comparison.failures)} runs failed; the same command tries '
            'them again.')


if __name__ == '__main__':
    # A terminated comparison ends its run as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with told_to_the_user('the same command goes on from here'):
        main()
