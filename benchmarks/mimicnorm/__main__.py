"""MimicNorm's two operations apart and together, against BN and GN.

    python -m benchmarks.mimicnorm [--quick]

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

from .experiments import CIFAR10, EXPERIMENTS, Settings, settings
from .training import train

EPOCHS = dict(digits=12, cifar10=20)


def train_missing(
    jobs: Sequence[Settings],
    results: dict[str, dict],
    out: Path,
    root: str | None,
    processes: int,
    device: str,
) -> None:
    """Train what has no result yet, once."""
    missing = [job for job in dict.fromkeys(jobs) if key_of(job) not in results]
    train_all(
        [(partial(train, root=root, device=device), missing)],
        results,
        out / RESULTS,
        processes,
        _line,
    )


def _line(job: Settings, result: dict) -> str:
    return (
        f'{job.norm}, {format_duration(job, ("norm",))}: accuracy '
        f'{result["accuracy"]:.3f}{", diverged" * result["diverged"]}'
    )


def write_report(*args) -> str:
    """Write the report, whose modules need MMEngine, unlike training."""
    from .report import write_report

    return write_report(*args)


def main() -> None:
    run(
        'mimicnorm',
        __doc__,
        dict(digits=EXPERIMENTS, cifar10=CIFAR10),
        settings,
        EPOCHS,
        train_missing,
        write_report,
    )


if __name__ == '__main__':
    main()
