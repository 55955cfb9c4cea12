"""The cost of a training step with each normalization."""

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
from mmengine.runner import Runner
from torch import nn

from mmpsbn.analysis import ratios, saved_bytes, time_alternately
from mmpsbn.config.errors import explain_config_errors
from mmpsbn.config.model import config_scope
from mmpsbn.detectors.build import build_model
from mmpsbn.hooks.norm_check_hook import LevelWatch, describe_shared, find_idle_norms


class TrainingCost(NamedTuple):
    """What one normalization costs on one batch of the training data."""

    step: float
    """The seconds of a forward pass, backward pass and step of SGD."""
    ratio: float
    """The seconds of a step divided by those of the first normalization."""
    inference: float
    """The seconds of a prediction for the batch."""
    stored: float
    """The stored activations of a step, in MiB."""
    peak: float | None
    """The peak memory of the model and its step on a GPU, in MiB."""
    batch: int
    """The number of images of the batch."""
    shared: Sequence[str] = ()
    """Norm layers that several pyramid levels share, see LevelWatch."""
    idle: Sequence[str] = ()
    """Why norm layers have no effect, see find_idle_norms."""


Costs = dict[str, TrainingCost]


def list_warnings(costs: Costs) -> list[str]:
    """List what puts a normalization at a disadvantage in a detector."""
    return [
        f'{norm}: {warning}'
        for norm, cost in costs.items()
        for warning in [
            *([describe_shared(cost.shared)] if cost.shared else []),
            *(f'{reason}.' for reason in cost.idle),
        ]
    ]


def measure_costs(cfgs: dict[str, Config], rounds: int) -> Costs:
    """Measure the detectors of some configs on the same training batch.

    Args:
        cfgs (dict): The config with each normalization.
        rounds (int): The rounds of timing. In each round all normalizations
            take turns.
    """
    device = get_device()
    batch = _load_batch(next(iter(cfgs.values())))
    steps, predictions, found = {}, {}, {}
    # The first product of matrices allocates a GPU's workspace, which stays.
    torch.ones(8, 8, device=device).mm(torch.ones(8, 8, device=device))
    for norm, cfg in cfgs.items():
        before = torch.cuda.memory_allocated()  # By the models so far.
        model = build_model(cfg).to(device)
        steps[norm], predictions[norm], loss = _make_actions(model, batch)
        idle = _find_idle_norms(cfg, model)
        watch, peak = LevelWatch(model), None
        stored = saved_bytes(loss, model.parameters()) / 2**20
        shared = watch.end()
        if device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
            steps[norm]()
            peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        found[norm] = dict(stored=stored, peak=peak, shared=shared, idle=idle)
    step, inference = time_alternately(steps, rounds), time_alternately(predictions, 1)
    relative = ratios(step)
    return {
        norm: TrainingCost(
            step=statistics.median(step[norm]),
            ratio=relative[norm],
            inference=statistics.median(inference[norm]),
            batch=len(batch['inputs']),
            **found[norm],
        )
        for norm in cfgs
    }


def _load_batch(cfg: Config) -> dict:
    """Load the first batch of the training data."""
    loader = dict(cfg.train_dataloader, num_workers=0, persistent_workers=False)
    # pycocotools prints progress messages.
    with redirect_stdout(StringIO()), config_scope(cfg):
        with explain_config_errors():
            loader = Runner.build_dataloader(loader, seed=0)
        return next(iter(loader))


@explain_config_errors()
def _find_idle_norms(cfg: Config, model: nn.Module) -> list[str]:
    """Describe why norm layers have no effect with the config's optimizer."""
    with config_scope(cfg):
        optim_wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    return find_idle_norms(model.train(), optim_wrapper)


def _make_actions(model: nn.Module, batch: dict) -> tuple:
    """Return functions for a training step, a prediction and the loss."""
    model.train()
    # Batch augmentations (YOLOX's) read the iteration, which a Runner sets.
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
