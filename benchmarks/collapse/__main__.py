"""Filter collapse under BN, and what psBN makes of it: the one command.

    python -m benchmarks.collapse [--quick]

Trains every variant of experiments.py with every seed, as many trainings at a
time as there are cores, one thread each, and writes report.md with tables and
figures. Each result is a line of results.jsonl: the same command resumes after
an interruption, repeats nothing, and makes the report from the lines.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.shared.command import run
from benchmarks.shared.pool import RESULTS, train_all
from benchmarks.shared.settings import format_duration, key_of

from .experiments import CIFAR10, EXPERIMENTS, Settings, settings, with_starts
from .training import file_of, train

WEIGHTS = 'weights'
EPOCHS = dict(digits=30, cifar10=20)


def train_missing(
    jobs: Sequence[Settings],
    results: dict[str, dict],
    out: Path,
    root: str | None,
    processes: int,
    device: str,
) -> None:
    """Train what has no result yet; first those that others start from."""
    weights = out / WEIGHTS
    weights.mkdir(parents=True, exist_ok=True)
    starts = {job.start for job in jobs}
    missing = [
        job
        for job in with_starts(jobs)
        if key_of(job) not in results
        or (job in starts and not (weights / file_of(job)).exists())
    ]
    trained = partial(train, root=root, weights=weights, device=device)
    train_all(
        [
            (partial(trained, keep=True), [job for job in missing if job in starts]),
            (
                partial(trained, keep=False),
                [job for job in missing if job not in starts],
            ),
        ],
        results,
        out / RESULTS,
        processes,
        _line,
    )


def _line(job: Settings, result: dict) -> str:
    return (
        f'{job.norm}{f" {job.alpha}" if job.alpha else ""}'
        f'{" from weights" if job.start else ""}, '
        f'{format_duration(job, ("start", "alpha"))}: accuracy '
        f'{result["accuracy"]:.3f}, {result["dead"][-1]} of '
        f'{result["channels"]} dead'
    )


def write_report(*args) -> str:
    """Write the report, whose modules need MMEngine, unlike training."""
    from .report import write_report

    return write_report(*args)


def main() -> None:
    run(
        'collapse',
        __doc__,
        dict(digits=EXPERIMENTS, cifar10=CIFAR10),
        settings,
        EPOCHS,
        train_missing,
        write_report,
    )


if __name__ == '__main__':
    main()
