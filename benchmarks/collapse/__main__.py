"""Filter collapse under BN, and what psBN changes.

    python -m benchmarks.collapse --data digits
    python -m benchmarks.collapse --data cifar10 --data-root DIR
    python -m benchmarks.collapse

The first two commands train what has no row yet in the CSV files of --results,
with one thread each, and add a row as each training ends. The same command
resumes after an interruption. All three end with the tables and figures of
README.md, which they make from the CSV files.
"""

from benchmarks.shared.command import run

from .experiments import STUDY
from .training import train


def main() -> None:
    run(STUDY, __doc__, train)


if __name__ == '__main__':
    main()
