"""A run: a detector that is finetuned round after round."""

import contextlib
import copy
import io
import math
from pathlib import Path
from typing import NamedTuple

import torch
from mmdet.evaluation import CocoMetric
from mmengine.optim import build_optim_wrapper
from torch import nn

from benchmarks.rounds.networks import seed_torch
from benchmarks.rounds.training import (
    checkpoint_of,
    learning_rates,
    read_checkpoint,
    write_checkpoint,
)
from mmpsbn.analysis.collapse import ChannelWatch
from mmpsbn.analysis.report import Layer, describe_layers
from mmpsbn.analysis.rounds import IMAGES, PARAMETERS, changes
from mmpsbn.errors import InputError

from .detectors import config_of, new_detector, reset_class_layers, set_training
from .studies import RESTART, SCRATCH, USUAL_LR, Run, Study, rounds_of
from .tasks import CLASSES, ROUND, START, Images, Task, collate, task_of

CHECKPOINT_EVERY = 5
EVALUATED = 20  # Images in one forward pass.


class Round(NamedTuple):
    """What is recorded of a round; NaN if the loss was not finite."""

    round: int
    mAP: float
    """On the test scenes of the round."""
    dead: float
    """The share of the channels before a ReLU that are dead on the training
    scenes of the round."""
    died: int
    """Channels that are dead and were alive at the end of the last round, or
    at the start for a restart. It means nothing for random weights."""
    recovered: int
    """Channels that are alive and were dead at the end of the last round."""
    dead_by_parameters: float
    """As ``dead``, by gamma and the shift, like the columns after it."""
    died_by_parameters: int
    recovered_by_parameters: int


def fit(model: nn.Module, task: Task, study: Study, run: Run) -> bool:
    """Train a detector on the task of a round.

    Returns:
        bool: Whether the loss was finite in all steps, and the weights are.
    """
    cfg = copy.deepcopy(config_of(study.name, run.placement, run.method))
    set_training(model, run.method)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    for lr, chosen in zip(learning_rates(run.lr, len(task.batches)), task.batches):
        wrapper.param_groups[0]['lr'] = lr
        losses = model.train_step(collate([task.train[i] for i in chosen]), wrapper)
        if not losses['loss'].isfinite():
            return False
    return all(bool(value.isfinite().all()) for value in model.parameters())


@torch.no_grad()
def evaluate(model: nn.Module, images: Images) -> float:
    """Compute the mAP (COCO's, at IoU 0.5 to 0.95) of a detector."""
    metric = CocoMetric(metric='bbox')
    metric.dataset_meta = dict(classes=tuple(map(str, range(CLASSES))))
    model.eval()
    for start in range(0, len(images), EVALUATED):
        outputs = model.test_step(
            copy.deepcopy(collate(images[start : start + EVALUATED]))
        )
        metric.process({}, [output.to_dict() for output in outputs])
    with contextlib.redirect_stdout(io.StringIO()):
        return metric.evaluate(len(images)).get('coco/bbox_mAP', 0.0)


@torch.no_grad()
def inspect(model: nn.Module, images: Images) -> list[Layer]:
    """Judge the channels of a detector, as tools/analyze_collapse.py does."""
    watch = ChannelWatch(model.eval())
    with watch:
        for start in range(0, len(images), EVALUATED):
            model.test_step(copy.deepcopy(collate(images[start : start + EVALUATED])))
    return describe_layers(watch.layers, watch.outputs)


def train_start(job: tuple[Study, Run], work_dir: Path) -> None:
    """Train the detector that the runs of a placement and seed start from.

    It has BN and the usual learning rate, more scenes and more steps, and
    random weights at its start.
    """
    torch.set_num_threads(1)
    file = start_of(job, work_dir)
    if file.exists():
        return
    study, run = job
    run = Run('BN', run.placement, USUAL_LR, run.seed)
    seed_torch(run.seed, 0)
    model = new_detector(study.name, run.placement, run.method)
    task = task_of(run.seed, 0, **START[study.name])
    if not fit(model, task, study, run):
        raise InputError(
            f'the starting detector of {study.name} diverged: its loss is not '
            f'finite at learning rate {run.lr:g}. Lower USUAL_LR.'
        )
    _write(file, model=model.state_dict(), layers=inspect(model, task.train))


def train(job: tuple[Study, Run], rounds: int, work_dir: Path) -> list[Round]:
    """Train a run on one thread, from its last checkpoint if it has one.

    The same run gives the same result on one machine, also with interruptions.

    Args:
        job (tuple): The study and its run.
        rounds (int): The number of rounds.
        work_dir (Path): The folder of the checkpoints. It has that of the
            starting detector.

    Raises:
        InputError: If a checkpoint cannot be read.
    """
    torch.set_num_threads(1)
    study, run = job
    start, file = read_checkpoint(start_of(job, work_dir)), checkpoint_of(job, work_dir)
    state = read_checkpoint(file) if file.exists() else start
    model = new_detector(study.name, run.placement, run.method)
    model.load_state_dict(state['model'])
    layers = [Layer(*values) for values in state['layers']]
    history = [Round(*values) for values in state.get('history', [])]
    for number in rounds_of(run.method, rounds)[len(history) :]:
        if run.method == RESTART:
            model.load_state_dict(start['model'])
            layers = [Layer(*values) for values in start['layers']]
        elif run.method != SCRATCH and history and math.isnan(history[-1].dead):
            history.append(_lost(number))
            continue
        task = task_of(run.seed, number, **ROUND)
        seed_torch(run.seed, number)
        fresh = new_detector(study.name, run.placement, run.method)
        if run.method == SCRATCH:
            model.load_state_dict(fresh.state_dict())
        reset_class_layers(model, fresh, study.name)
        if not fit(model, task, study, run):
            history.append(_lost(number))
            continue
        before, layers = layers, inspect(model, task.train)
        history.append(_round(model, task, number, before, layers))
        if len(history) % CHECKPOINT_EVERY == 0:
            _write(
                file,
                model=model.state_dict(),
                layers=layers,
                history=[list(one) for one in history],
            )
    return history


def start_of(job: tuple[Study, Run], work_dir: Path) -> Path:
    """Name the checkpoint of the starting detector of a run."""
    study, run = job
    return work_dir / study.name / f'start-{run.placement}-{run.seed}.pth'


def _write(file: Path, layers: list[Layer], **state) -> None:
    write_checkpoint(file, **state, layers=[list(layer) for layer in layers])


def _round(model, task, number, before, layers) -> Round:
    by_judge = []
    for judge in (IMAGES, PARAMETERS):
        change = changes([before, layers], judge)[1]
        by_judge += [
            round(change.dead / change.channels, 4),
            change.newly_dead,
            change.recovered,
        ]
    return Round(number, round(evaluate(model, task.test), 4), *by_judge)


def _lost(number: int) -> Round:
    return Round(number, 0.0, math.nan, 0, 0, math.nan, 0, 0)
