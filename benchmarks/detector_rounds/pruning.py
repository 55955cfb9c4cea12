"""How small is a detector without the channels that died in its rounds?

    python -m benchmarks.detector_rounds.pruning

The command trains the runs with MMDetection's default norm_eval, in which
channels die, and prunes their last detectors as tools/prune.py does. The
training scenes of the last round select the channels, and the test scenes are
the held-out images. It adds a row for each detector to pruning.csv, and
resumes after an interruption. requirements/prune.txt has what it needs.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import mmcv

import mmpsbn.cli  # noqa: F401  First: it checks the stack.
from benchmarks.rounds.training import checkpoint_of, read_last
from benchmarks.shared.arguments import add_work_dir, check_counts, study_parser
from benchmarks.shared.rows import add_missing
from mmpsbn.checkpoints.reading import Checkpoint
from mmpsbn.cli.errors import exit_with_message, interrupt_on_signals
from mmpsbn.prune import prune
from mmpsbn.stack import check_packages

from .detectors import config_of
from .studies import DETECTORS, ROUNDS, SEEDS, USUAL_LR, Run, Study
from .tasks import ROUND, SIZE, Images, task_of
from .training import train, train_start

FOLDER = Path(__file__).resolve().parent
FILE = 'pruning.csv'
METHOD, PLACEMENT = 'norm_eval', 'backbone'


class Detector(NamedTuple):
    """A detector of the study after its last round."""

    name: str
    seed: int


class Size(NamedTuple):
    """A detector before and after pruning, with its BN folded.

    If nothing was removed, all values are 0.
    """

    removed: int
    """Channels. Those that a residual sum connects count once."""
    parameters: int
    remaining: int
    """Parameters after pruning."""
    flops: int
    remaining_flops: int
    difference: float
    """The largest one of a raw output on the training scenes, relative to the
    largest of each."""
    detections: int
    same: int
    """Detections that pruning leaves unchanged."""
    test_difference: float
    """As ``difference``, on the test scenes, like the columns after it."""
    test_detections: int
    test_same: int


def job_of(detector: Detector) -> tuple[Study, Run]:
    """Return the run that ends with a detector."""
    return Study(detector.name, ()), Run(METHOD, PLACEMENT, USUAL_LR, detector.seed)


def measure(detector: Detector, work_dir: Path) -> Size:
    """Train the run of a detector and prune the result.

    Raises:
        InputError: If the last checkpoint is not that of the last round.
    """
    job = job_of(detector)
    train_start(job, work_dir)
    train(job, ROUNDS, work_dir)
    file = checkpoint_of(job, work_dir)
    model = read_last(file, ROUNDS)['model']
    task = task_of(detector.seed, ROUNDS, **ROUND)
    with TemporaryDirectory() as folder:
        pruned = prune(
            config_of(detector.name, PLACEMENT, METHOD),
            Checkpoint(str(file), dict(state_dict=model)),
            write_images(task.train, Path(folder, 'train')),
            write_images(task.test, Path(folder, 'test')),
            str(Path(folder, 'pruned')),
            shape=(SIZE, SIZE),
        )
    if not pruned.removal.removed:
        return Size(*[0] * len(Size._fields))
    before, after, seen, others = pruned[1:]
    return Size(
        pruned.removal.removed,
        before.parameters,
        after.parameters,
        before.flops,
        after.flops,
        float(f'{seen.difference:.1e}'),
        seen.detections,
        seen.same,
        float(f'{others.difference:.1e}'),
        others.detections,
        others.same,
    )


def write_images(images: Images, folder: Path) -> list[str]:
    """Write scenes as files, and list them."""
    files = [str(folder / f'{number}.png') for number in range(len(images))]
    for file, (pixels, _) in zip(files, images):
        mmcv.imwrite(pixels.permute(1, 2, 0).numpy(), file)
    return files


def main() -> None:
    parser = study_parser('detector_rounds.pruning', __doc__, FOLDER, SEEDS)
    add_work_dir(parser, 'detector_rounds', 'checkpoints')
    args = parser.parse_args()
    check_counts(parser, args, 'seeds', 'processes')
    check_packages('pruning', 'prune', 'torch_pruning')
    detectors = [
        Detector(name, seed) for name in DETECTORS for seed in range(args.seeds)
    ]
    function = partial(measure, work_dir=args.work_dir)
    for detector, size in add_missing(
        args.results / FILE, function, detectors, Size, args.processes
    ):
        checkpoint_of(job_of(detector), args.work_dir).unlink()
        print(
            f'{detector.name}, seed {detector.seed}: {size.removed} channels removed, '
            f'{size.remaining:,} of {size.parameters:,} parameters remain',
            flush=True,
        )


if __name__ == '__main__':
    interrupt_on_signals()
    with exit_with_message('The same command resumes from the last checkpoints'):
        main()
