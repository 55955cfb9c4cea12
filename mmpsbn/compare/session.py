"""A comparison carried out: timed, planned, run side by side, reported."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

from mmpsbn.compare.costs import Cost, list_warnings, measure_costs
from mmpsbn.compare.report import write_report
from mmpsbn.compare.runs import Comparison, Run
from mmpsbn.config.data_errors import explain_data_errors
from mmpsbn.config.reading import TRAINING_LOADERS
from mmpsbn.errors import InputError
from mmpsbn.files import write_atomically

COSTS = 'costs.json'


def run_comparison(
    comparison: Comparison,
    costs: dict[str, Cost],
    environments: Sequence[dict[str, str]],
    command: str,
) -> Path | None:
    """Run what has not ended yet, and report on all that has.

    What happens is printed, with the time that is left.

    Args:
        comparison (Comparison): Whose folder has been made.
        costs (dict): Of its normalizations, see :func:`load_costs`.
        environments (list[dict]): One for each run at a time, see
            :func:`~mmpsbn.compare.runs.divide_machine`.
        command (str): For the report.

    Returns:
        Path: Of the report's page; None if no run has ended.

    Raises:
        InputError: If runs failed; the report is of the others.
    """
    train(comparison, costs, environments)
    page = write_report(comparison, costs, command)
    if page:
        print(f'\nReport: {page}')
    check_failures(comparison)
    return page


def train(
    comparison: Comparison,
    costs: dict[str, Cost],
    environments: Sequence[dict[str, str]],
) -> None:
    """Run what has not ended yet; see :func:`run_comparison`."""
    print_plan(comparison, costs, len(environments))
    if comparison.tuning:
        _train(comparison, comparison.tuning, costs, environments)
    _train(comparison, comparison.finals, costs, environments)


def check_failures(comparison: Comparison) -> None:
    """Raise an InputError if runs failed."""
    if comparison.failures:
        raise InputError(
            f'{len(comparison.failures)} runs failed; the same command tries '
            'them again.'
        )


def load_costs(
    comparison: Comparison, rounds: int, keep: bool = True
) -> dict[str, Cost]:
    """Measured once for each set of normalizations, before any run.

    Args:
        comparison (Comparison): Whose folder may have them.
        rounds (int): Of timing.
        keep (bool): Whether to write them there. Defaults to True.
    """
    file = comparison.work_dir / COSTS
    if file.exists():
        found = json.loads(file.read_text())
        if set(comparison.cfgs) <= set(found):
            return {norm: Cost(*found[norm]) for norm in comparison.cfgs}
    print('Timing a training step with each normalization ...', flush=True)
    with explain_data_errors(comparison.cfg, TRAINING_LOADERS):
        costs = measure_costs(comparison.cfgs, rounds)
    if keep:
        write_atomically(file, json.dumps(costs).encode())
    return costs


def format_duration(seconds: float) -> str:
    """A time, as in "about ... to go"."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f'{seconds:.0f} s'
    return f'{minutes // 60} h {minutes % 60} min' if minutes > 90 else f'{minutes} min'


def left(
    comparison: Comparison,
    costs: dict[str, Cost],
    at_once: int,
    shares: dict[Run, float] | None = None,
) -> float:
    """Seconds that the runs not yet ended will take.

    ``shares`` are what runs in progress have behind them.
    """
    shares = shares or {}
    return (
        sum(
            (1 - shares.get(run, comparison.done(run)))
            * comparison.estimate(run, costs)
            for run in comparison.runs
            if run not in comparison.failures
        )
        / at_once
    )


def print_plan(comparison: Comparison, costs: dict[str, Cost], at_once: int) -> None:
    """Every run with its state or its time, remarks, and the time in all."""
    for run in comparison.runs:
        done, seconds = comparison.done(run), comparison.estimate(run, costs)
        state = (
            'finished'
            if comparison.result(run)
            else (f'{done:.0%} done' if done else format_duration(seconds))
        )
        print(f'  {str(run):44}{state:>12}')
    for remark in [*comparison.remarks(), *list_warnings(costs)]:
        print(remark)
    print(
        f'About {format_duration(left(comparison, costs, at_once))} to go, on this '
        'machine.'
    )


def _train(
    comparison: Comparison,
    runs: Sequence[Run],
    costs: dict[str, Cost],
    environments: Sequence[dict[str, str]],
) -> None:
    """Train the runs of a stage, as far as their learning rates are known."""
    at_once, shares = len(environments), {}
    free = SimpleQueue()
    for environment in environments:
        free.put(environment)
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn('{task.fields[left]}'),
    )
    console = Console()

    def train_one(number, run):
        if run.lr is None or comparison.result(run):
            return
        task = progress.add_task(str(run), total=1.0, left='')

        def watch(share):
            shares[run] = share
            seconds = left(comparison, costs, at_once, dict(shares))
            progress.update(
                task, completed=share, left=f'all: {format_duration(seconds)} left'
            )

        environment = free.get()
        well = comparison.run(run, watch, environment)
        free.put(environment)
        shares[run] = 1.0
        progress.remove_task(task)
        if not well:
            state = f'failed: {comparison.failures[run]}'
        else:
            diverged = comparison.result(run)['diverged']
            seconds = left(comparison, costs, at_once, dict(shares))
            state = (
                f'{"diverged" if diverged else "done"}, {format_duration(seconds)} left'
            )
        print(f'[{number}/{len(runs)}] {run}: {state}', flush=True)

    with (
        Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        ) as progress,
        ThreadPoolExecutor(at_once) as pool,
    ):
        try:
            for future in as_completed(
                [
                    pool.submit(train_one, number, run)
                    for number, run in enumerate(runs, 1)
                ]
            ):
                future.result()
        except BaseException:
            comparison.interrupt()
            pool.shutdown(cancel_futures=True)
            raise
