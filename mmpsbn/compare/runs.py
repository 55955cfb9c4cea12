"""The runs of a comparison: what each one trains, and how long it takes."""

import copy
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import NamedTuple

from mmengine.config import Config
from mmengine.registry import DATASETS

from mmpsbn.compare.costs import TrainingCost
from mmpsbn.compare.held_out import HeldOut
from mmpsbn.compare.schedule import stretch
from mmpsbn.config.data_errors import explain_data_errors
from mmpsbn.config.model import config_scope
from mmpsbn.config.reading import TRAINING_LOADERS
from mmpsbn.errors import InputError
from mmpsbn.statistics.tables import format_length, format_lr

# Seeds of tuning runs start here, so that no final run has one of them.
TUNING_SEED = 1000
START = 15  # Assumed seconds until a training has started.


class Run(NamedTuple):
    """One training of one normalization."""

    norm: str
    lr: float | None
    """None until the tuning runs that choose it have ended."""
    seed: int
    length: float = 1
    """A multiple of the config's schedule."""
    tuning: bool = False
    """Whether it is evaluated on held-out training images."""

    @property
    def name(self) -> str:
        length = f'_x{format_lr(self.length)}' if self.length != 1 else ''
        stage = 'tuning_' if self.tuning else ''
        return f'{stage}{self.norm}{length}_lr{format_lr(self.lr)}_seed{self.seed}'

    @property
    def kind(self) -> tuple:
        """Runs of the same kind take the same time."""
        return self.norm, self.length, self.tuning

    def __str__(self) -> str:
        lr = 'to be chosen' if self.lr is None else format_lr(self.lr)
        length = f', {format_length(self.length)} schedule' if self.length != 1 else ''
        stage = 'tuning ' if self.tuning else ''
        return f'{stage}{self.norm}{length}, lr {lr}, seed {self.seed}'


class Workload(NamedTuple):
    """The numbers of iterations, evaluations and images of a training."""

    iterations: int
    evaluations: int
    images: int
    """The size of the validation set."""
    unit: str
    """What evaluations are counted by: ``epoch`` or ``iteration``."""

    def estimate_seconds(self, cost: TrainingCost, processes: int) -> float:
        """Estimate the seconds of a training without its overhead."""
        batches = self.evaluations * self.images / cost.batch / processes
        return START + cost.step * self.iterations + cost.inference * batches


def compute_workloads(
    cfg: Config, lengths: Sequence[float], *, processes: int, held_out: HeldOut | None
) -> dict[tuple[float, bool], Workload]:
    """Compute the workload for each length, and for whether a run tunes."""
    # pycocotools prints progress messages.
    with (
        explain_data_errors(cfg, TRAINING_LOADERS),
        config_scope(cfg),
        redirect_stdout(StringIO()),
    ):
        train, val = (
            len(DATASETS.build(copy.deepcopy(cfg[loader]['dataset'])))
            for loader in TRAINING_LOADERS
        )
    images = {False: (train, val)}
    if held_out:
        images[True] = round(train * (1 - held_out.share)), held_out.images
    found = {}
    for length in lengths:
        stretched = copy.deepcopy(cfg)
        stretch(stretched, length)
        loop = stretched.train_cfg
        by_epoch = 'max_iters' not in loop
        end = loop.max_epochs if by_epoch else loop.max_iters
        if loop.get('val_begin', 1) > end:
            raise InputError(
                f'train_cfg.val_begin={loop.val_begin} of the config is after the '
                f'end of training, {end}, so mAP is never measured. Set it to 1.'
            )
        # MMEngine's default interval.
        evaluations = max(1, end // loop.get('val_interval', 1 if by_epoch else 1000))
        batch = cfg.train_dataloader.batch_size * processes
        for tuning, (train, val) in images.items():
            steps = end * math.ceil(train / batch) if by_epoch else end
            unit = 'epoch' if by_epoch else 'iteration'
            found[length, tuning] = Workload(steps, evaluations, val, unit)
    return found
