"""What a training step costs with each normalization, side by side."""

import copy
import statistics
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmpsbn.analysis import saved_bytes, time_alternately
from mmpsbn.config.errors import explain_config_errors
from mmpsbn.detectors.build import build_model
from mmpsbn.hooks.norm_check_hook import LevelWatch, describe_shared, find_idle_norms


class Cost(NamedTuple):
    """Of one normalization, on one batch of the training data."""

    step: float
    """Seconds of a step: forward, backward and SGD; without loading data."""
    ratio: float
    """Of the step, to that of the first normalization in the same round."""
    inference: float
    """Seconds of a prediction for the batch."""
    saved: float
    """MiB that autograd keeps of a forward for its backward."""
    peak: float | None
    """MiB that the allocator of a GPU held at most in a step."""
    batch: int
    """Images of the batch."""
    shared: Sequence[str] = ()
    """Norm layers that several pyramid levels share, see LevelWatch."""
    idle: Sequence[str] = ()
    """Why its layers have no effect, see find_idle_norms."""


def list_warnings(costs: dict[str, Cost]) -> list[str]:
    """What makes some normalizations worse than they are."""
    return [
        f'{norm}: {warning}'
        for norm, cost in costs.items()
        for warning in [
            *([describe_shared(cost.shared)] if cost.shared else []),
            *(f'{reason}.' for reason in cost.idle),
        ]
    ]


def measure_costs(cfgs: dict[str, Config], rounds: int) -> dict[str, Cost]:
    """Measure the detectors of some configs on the same training batch.

    Args:
        cfgs (dict): For each normalization its config.
        rounds (int): Of timing, in which all take time_alternately.
    """
    device = get_device()
    batch = _training_batch(next(iter(cfgs.values())))
    steps, predictions, saved, peak, shared, idle = {}, {}, {}, {}, {}, {}
    for norm, cfg in cfgs.items():
        model = build_model(cfg).to(device)
        steps[norm], predictions[norm], loss = _actions(model, batch)
        idle[norm] = _idle_norms(cfg, model)
        watch = LevelWatch(model)
        saved[norm] = saved_bytes(loss, model.parameters()) / 2**20
        shared[norm] = watch.end()
        if device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
            steps[norm]()
            peak[norm] = torch.cuda.max_memory_allocated() / 2**20
    step, inference = time_alternately(steps, rounds), time_alternately(predictions, 1)
    first = step[next(iter(cfgs))]
    return {
        norm: Cost(
            statistics.median(step[norm]),
            statistics.median(a / b for a, b in zip(step[norm], first)),
            statistics.median(inference[norm]),
            saved[norm],
            peak.get(norm),
            len(batch['inputs']),
            shared[norm],
            idle[norm],
        )
        for norm in cfgs
    }


def _training_batch(cfg: Config) -> dict:
    loader = dict(cfg.train_dataloader, num_workers=0, persistent_workers=False)
    # pycocotools prints what it does.
    with (
        redirect_stdout(StringIO()),
        DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')),
    ):
        with explain_config_errors():
            loader = Runner.build_dataloader(loader, seed=0)
        return next(iter(loader))


@explain_config_errors()
def _idle_norms(cfg: Config, model: nn.Module) -> list[str]:
    """Say why norm layers have no effect with the config's optimizer."""
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        optim_wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    return find_idle_norms(model.train(), optim_wrapper)


def _actions(model, batch):
    """A training step, a prediction, and the loss, as functions."""
    model.train()
    # Augmentations of batches (YOLOX's) ask for it, and a Runner sets it.
    MessageHub.get_current_instance().update_info('iter', 0)
    data = model.data_preprocessor(batch, True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def loss():
        return model.parse_losses(model(**data, mode='loss'))[0]

    def step():
        model.train()
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def predict():
        model.eval()
        model(**data, mode='predict')

    return step, predict, loss
