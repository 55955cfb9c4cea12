"""How small is a detector without the channels that died in its rounds?

    python -m benchmarks.detector_rounds.pruning

The command trains the runs with MMDetection's default norm_eval, in which
channels die, and prunes their last detectors as tools/prune.py does. The
training scenes of the last round select the channels, and the test scenes are
the held-out images. The starting detectors, pruned with the same scenes, show
which channels the rounds have not closed. It adds a row for each detector to
pruning.csv, and resumes after an interruption. requirements/onnx.txt and
requirements/prune.txt have what it needs.
"""

from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import mmcv

import mmpsbn.cli  # noqa: F401  First: it checks the stack.
from benchmarks.rounds.training import checkpoint_of, read_checkpoint, read_last
from benchmarks.shared.arguments import add_work_dir, check_counts, study_parser
from benchmarks.shared.rows import add_missing
from mmpsbn.checkpoints.reading import Checkpoint
from mmpsbn.cli.errors import exit_with_message, interrupt_on_signals
from mmpsbn.detectors.build import load_model
from mmpsbn.export.onnx_file import check_onnx, folded_stock
from mmpsbn.prune import prune
from mmpsbn.stack import check_packages

from .detectors import config_of
from .studies import DETECTORS, ROUNDS, SEEDS, USUAL_LR, Run, Study
from .tasks import ROUND, SIZE, Images, task_of
from .training import start_of, train, train_start

FOLDER = Path(__file__).resolve().parent
FILE = 'pruning.csv'
METHOD, PLACEMENT = 'norm_eval', 'backbone'


class Detector(NamedTuple):
    """A detector of the study."""

    name: str
    rounds: int
    """The rounds behind it: all, or 0 for the starting detector."""
    seed: int


class Size(NamedTuple):
    """A detector before and after pruning, with its BN folded."""

    removed: int
    """Channels of convolutions and linear layers. Those that a residual sum
    connects count once."""
    parameters: int
    remaining: int
    """Parameters after pruning."""
    difference: float
    """The largest difference of raw outputs on the training scenes, relative to
    the largest number of each output."""
    detections: int
    """Those on the training scenes; 0 if nothing was removed."""
    same: int
    """Detections that pruning leaves unchanged."""
    test_difference: float
    """As ``difference``, on the test scenes, like the columns after it."""
    test_detections: int
    test_same: int


def job_of(detector: Detector) -> tuple[Study, Run]:
    """Return the run that leads to a detector."""
    return Study(detector.name, ()), Run(METHOD, PLACEMENT, USUAL_LR, detector.seed)


def measure(detector: Detector, work_dir: Path) -> Size:
    """Train the run of a detector and prune the result.

    Raises:
        InputError: If the last checkpoint is not that of the last round.
    """
    job = job_of(detector)
    train_start(job, work_dir)
    if detector.rounds:
        train(job, detector.rounds, work_dir)
        file = checkpoint_of(job, work_dir)
        state = read_last(file, detector.rounds)
    else:
        file = start_of(job, work_dir)
        state = read_checkpoint(file)
    checkpoint = Checkpoint(str(file), dict(state_dict=state['model']))
    cfg = config_of(detector.name, PLACEMENT, METHOD)
    task = task_of(detector.seed, ROUNDS, **ROUND)
    with TemporaryDirectory() as folder:
        pruned = prune(
            cfg,
            checkpoint,
            write_images(task.train, Path(folder, 'train')),
            write_images(task.test, Path(folder, 'test')),
            str(Path(folder, 'pruned')),
            shape=(SIZE, SIZE),
        )
    removal, before, after, seen, others = pruned
    if not removal.removed:
        folded = folded_stock(cfg, load_model(cfg, checkpoint))
        parameters = sum(value.numel() for value in folded.parameters())
        return Size(0, parameters, parameters, 0.0, 0, 0, 0.0, 0, 0)
    return Size(
        removal.removed,
        before.parameters,
        after.parameters,
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
    # The runs of the study may be in progress in its own folder.
    add_work_dir(parser, 'detector_rounds-pruning', 'checkpoints')
    args = parser.parse_args()
    check_counts(parser, args, 'seeds', 'processes')
    check_packages('pruning', 'prune', 'torch_pruning')
    check_onnx()
    names = product(DETECTORS, range(args.seeds))
    starts = [Detector(name, 0, seed) for name, seed in names]
    function = partial(measure, work_dir=args.work_dir)
    # The first wave trains the starting detectors.
    for wave in (starts, [one._replace(rounds=ROUNDS) for one in starts]):
        for detector, size in add_missing(
            args.results / FILE, function, wave, Size, args.processes
        ):
            if detector.rounds:
                checkpoint_of(job_of(detector), args.work_dir).unlink()
            print(
                f'{detector.name}, {detector.rounds} rounds, seed {detector.seed}: '
                f'{size.removed} channels removed, {size.remaining:,} of '
                f'{size.parameters:,} parameters remain',
                flush=True,
            )
    print(f'Results: {args.results / FILE}')


if __name__ == '__main__':
    interrupt_on_signals()
    with exit_with_message('the same command resumes from the last checkpoints'):
        main()
