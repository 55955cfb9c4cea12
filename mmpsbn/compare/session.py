"""A comparison from the first timing to the report."""

import gc
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings
from rich.progress import Progress, TextColumn

from mmpsbn.compare.comparison import Comparison
from mmpsbn.compare.costs import Costs, TrainingCost, list_warnings, measure_costs
from mmpsbn.compare.report import write_report
from mmpsbn.compare.runs import Run
from mmpsbn.config.data_errors import explain_data_errors
from mmpsbn.config.reading import TRAINING_LOADERS
from mmpsbn.errors import InputError
from mmpsbn.files import write_atomically
from mmpsbn.statistics.tables import format_duration

COSTS = 'costs.json'


def run_comparison(
    comparison: Comparison,
    costs: Costs,
    *,
    environments: Sequence[dict[str, str]],
    command: str,
) -> Path | None:
    """Train the runs that have not ended, and report on all that have.

    The plan, the progress and the remaining time are printed.

    Args:
        comparison (Comparison): The comparison. Its folder has been made.
        costs (dict): What :func:`load_costs` returns.
        environments (list[dict]): The environment variables of each parallel
            run, see :func:`~mmpsbn.compare.processes.divide_machine`.
        command (str): The command that the report shows.

    Returns:
        Path: The page of the report; None if no run has ended.

    Raises:
        InputError: If runs failed. The report covers the others.
    """
    train_runs(comparison, costs, environments)
    page = write_report(comparison, costs, command)
    if page:
        print(f'\nReport: {page}')
    check_failures(comparison)
    return page


def train_runs(
    comparison: Comparison, costs: Costs, environments: Sequence[dict[str, str]]
) -> None:
    """Train the runs that have not ended, see :func:`run_comparison`."""
    print_plan(comparison, costs, len(environments))
    _train_stage(comparison, comparison.tuning, costs, environments)
    # Now the learning rates of the final runs are known.
    _train_stage(comparison, comparison.finals, costs, environments)


def check_failures(comparison: Comparison) -> None:
    """Raise an InputError if runs failed."""
    if comparison.failures:
        raise InputError(
            f'{len(comparison.failures)} runs failed, for the reasons above. Run the '
            'same command to retry them.'
        )


def load_costs(comparison: Comparison, rounds: int, *, keep: bool = True) -> Costs:
    """Read the costs of the normalizations from the folder of a comparison.

    If they are not there, they are measured and, by default, kept there. With a
    cluster, a job measures them where the runs train.
    """
    file = comparison.work_dir / COSTS
    if file.exists():
        found = json.loads(file.read_text())
        if set(comparison.cfgs) <= set(found):
            return {norm: TrainingCost(*found[norm]) for norm in comparison.cfgs}
    print('Timing a training step with each normalization ...', flush=True)
    measure = partial(_measure, comparison.cfg, comparison.cfgs, rounds)
    if comparison.cluster and keep:
        costs = comparison.cluster.call(file.with_suffix('.job'), measure)
    else:
        costs = measure()
    if keep:
        write_atomically(file, json.dumps(costs).encode())
    return costs


def _measure(cfg: Config, cfgs: dict[str, Config], rounds: int) -> Costs:
    """Measure costs, possibly in a process that has not read the config."""
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    with explain_data_errors(cfg, TRAINING_LOADERS):
        costs = measure_costs(cfgs, rounds)
    gc.collect()
    torch.cuda.empty_cache()  # The runs may need this memory.
    return costs


def estimate_remaining(comparison: Comparison, costs: Costs, at_once: int) -> float:
    """Estimate the seconds until all runs have ended, if some run in parallel."""
    seconds = [
        (1 - comparison.progress(run)) * seconds
        for run, seconds in comparison.estimate_seconds(costs).items()
        if run not in comparison.failures
    ]
    return sum(seconds) / at_once


def print_plan(comparison: Comparison, costs: Costs, at_once: int) -> None:
    """Print each run with its progress or time, the remarks and the total."""
    for run, seconds in comparison.estimate_seconds(costs).items():
        progress = comparison.progress(run)
        state = f'{progress:.0%} done' if progress else format_duration(seconds)
        state = 'finished' if comparison.result(run) else state
        print(f'  {str(run):44}{state:>12}')
    for remark in [*comparison.remarks(), *list_warnings(costs)]:
        print(remark)
    remaining = format_duration(estimate_remaining(comparison, costs, at_once))
    where = 'without the time in the queue' if comparison.cluster else 'on this machine'
    print(f'Estimated remaining time: {remaining}, {where}.')


def _train_stage(comparison, runs: Sequence[Run], costs, environments) -> None:
    """Train the runs of a stage whose learning rates are known."""
    free = list(environments)
    progress = Progress(
        *Progress.get_default_columns(),
        TextColumn('{task.fields[remaining]}'),
        transient=True,
    )
    progress.disable = not progress.console.is_terminal

    def remaining():
        seconds = estimate_remaining(comparison, costs, len(environments))
        return f'{format_duration(seconds)} left'

    def train_one(number, run):
        if run.lr is None or comparison.result(run):
            return
        task = progress.add_task(str(run), total=1.0, remaining='')

        def watch(share):
            progress.update(task, completed=share, remaining=f'all: {remaining()}')

        environment = free.pop()
        ended = comparison.run(run, watch, environment)
        free.append(environment)
        progress.remove_task(task)
        state = f'failed: {comparison.failures.get(run)}'
        if ended:
            diverged = comparison.result(run)['diverged']
            state = f'{"diverged" if diverged else "done"}, {remaining()}'
        print(f'[{number}/{len(runs)}] {run}: {state}', flush=True)

    with progress, ThreadPoolExecutor(len(environments)) as pool:
        trainings = [
            pool.submit(train_one, number, run) for number, run in enumerate(runs, 1)
        ]
        try:
            for training in as_completed(trainings):
                training.result()
        except BaseException:
            comparison.interrupt()
            pool.shutdown(cancel_futures=True)
            raise
