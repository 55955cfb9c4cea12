"""The pilot: which learning rates work for a single training.

    python -m benchmarks.detector_rounds.pilot

BN is finetuned for one round from the starting weights, on a seed that the
study does not use, in two rounds of each learning rate. Rows are added to
pilot/*.csv as each learning rate ends, and are not repeated. The command ends
with a table of all learning rates. The study takes its own from the CSV files.
"""

import argparse
import time
from itertools import product
from pathlib import Path
from statistics import mean

import mmpsbn.cli  # noqa: F401  First: it checks the stack.
from benchmarks.shared.arguments import add_work_dir
from mmpsbn.cli.errors import exit_with_message, interrupt_on_signals
from mmpsbn.errors import InputError
from mmpsbn.statistics.tables import format_table

from .results import Results
from .studies import (
    DETECTORS,
    PLACEMENTS,
    RESTART,
    USUAL_LR,
    Place,
    Run,
    Setting,
    Study,
)
from .training import train, train_start

FOLDER = Path(__file__).resolve().parent / 'pilot'
SEED, ROUNDS = 1000, 4  # Two of the four rounds are trained.
LRS = tuple(USUAL_LR * 2.0**power for power in range(-2, 6))
WORKS = 0.9
LEAST_MAP = 0.2
PLACES = [Place(*both) for both in product(DETECTORS, PLACEMENTS)]


def mean_scores(results: Results, placement: str) -> dict[float, float]:
    """Average the mAP of each learning rate that has been tried."""
    return {
        run.lr: mean(row.mAP for row in rows)
        for run, rows in sorted(results.rounds.items())
        if run.placement == placement
    }


def highest_that_works(scores: dict[float, float]) -> float:
    """Return the highest learning rate with at least 0.9 times the best mAP.

    Args:
        scores (dict): The mAP of each learning rate.
    """
    least = WORKS * max(scores.values())
    return max(lr for lr, score in scores.items() if score >= least)


def rates_from(scores: dict[float, float]) -> tuple[float, ...]:
    """Choose the learning rates of the study.

    They are the highest one that works and the usual one. If the usual one is
    too high, the best one is added.

    Args:
        scores (dict): The mAP of each learning rate.
    """
    rates = {highest_that_works(scores), USUAL_LR}
    if max(rates) == USUAL_LR > min(rates):
        rates.add(max(scores, key=lambda lr: scores[lr]))
    return tuple(sorted(rates, reverse=True))


def find_lrs(folder: Path = FOLDER) -> dict[Place, tuple[float, ...]]:
    """Choose the learning rates of the study from the CSV files.

    Raises:
        InputError: If the pilot has not finished, or if a detector has not
            learned the task.
    """
    found = {}
    for place in PLACES:
        scores = mean_scores(_results(folder, place.detector), place.placement)
        if set(scores) != set(LRS):
            raise InputError(
                f'the pilot of {place.detector} with norm layers in '
                f'{place.placement} has tried {len(scores)} of {len(LRS)} learning '
                'rates, and the study needs all of them. Run python -m '
                'benchmarks.detector_rounds.pilot first.'
            )
        if scores[USUAL_LR] < LEAST_MAP:
            raise InputError(
                f'{place.detector} with norm layers in {place.placement} has a mAP of '
                f'{scores[USUAL_LR]:.3f} in the pilot, and the study needs {LEAST_MAP} '
                'to compare anything. Train its starting detector for longer (START in '
                'tasks.py), delete its rows in pilot/ and its checkpoints in the work '
                'dir, and run the pilot again.'
            )
        found[place] = rates_from(scores)
    return found


def _results(folder: Path, detector: str) -> Results:
    settings = tuple(Setting(place, lr) for place in PLACEMENTS for lr in LRS)
    return Results(folder, Study(detector, settings))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.detector_rounds.pilot',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_work_dir(parser, 'detector_rounds_pilot', 'checkpoints')
    parser.add_argument('--results', type=Path, default=FOLDER)
    args = parser.parse_args()
    lines = []
    for detector, placement in PLACES:
        results = _results(args.results, detector)
        for lr in LRS:
            run = Run(RESTART, placement, lr, SEED)
            if run not in results.rounds:
                job = results.study, run
                train_start(job, args.work_dir)
                begin = time.process_time()
                rows = train(job, ROUNDS, args.work_dir)
                results.add(run, rows)
                seconds = (time.process_time() - begin) / len(rows)
                print(
                    f'{detector}, {placement}, lr {lr:g}: mAP '
                    f'{" ".join(str(row.mAP) for row in rows)}, {seconds:.1f} CPU '
                    'seconds per round',
                    flush=True,
                )
        scores = mean_scores(results, placement)
        lines.append(
            [
                f'{detector}, {placement}',
                *(f'{scores[lr]:.3f}' for lr in LRS),
                f'{highest_that_works(scores):g}',
            ]
        )
    print(format_table(['mAP', *(f'lr {lr:g}' for lr in LRS), 'highest'], lines))


if __name__ == '__main__':
    interrupt_on_signals()
    with exit_with_message('the same command resumes from here'):
        main()
