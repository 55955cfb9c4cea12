r"""Dead channels at the start of a training, and which of them it can recover.

Without a gradient, an optimizer shrinks the learned shift beta of a channel by
exp(-D). A channel of psBN reopens when beta rises above -alpha, so a training
recovers channels with \|beta\| < alpha exp(D); see docs/methods.md. Weight
decay alone recovers no channel of BN: at a beta of 0, the ReLU is still closed.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import NamedTuple

import torch
from mmcv.cnn.bricks.norm import infer_abbr
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmpsbn.analysis.collapse import (
    LEAST_PROBABILITY,
    channels_of,
    gamma_and_shift,
    keeps_statistics,
    norm_layers,
    positive_probability,
)
from mmpsbn.analysis.report import align_columns, format_count
from mmpsbn.layers.post_shifted_bn import PostShift

ALPHA = 0.1  # That of psBN by default.
# Others may do more in a step than set parameters of the optimizer.
KNOWN_SCHEDULERS = ('mmengine.optim.', 'mmdet.engine.schedulers.')


class StartingLayer(NamedTuple):
    """A norm layer before the first step of a training."""

    kind: str
    alpha: float
    """The alpha of psBN, psBN's default for BN, and NaN for other layers and
    for fixed statistics."""
    decay: float
    """D of its bias; NaN if it is unknown."""
    frozen: bool
    """Whether no optimizer changes its bias."""
    fixed: bool
    """Whether its filter changes without its statistics, see keeps_statistics.
    Then more channels than those of ``dead`` may be dead."""
    dead: Tensor
    """Bool, ``(C,)``: P(gamma * x_hat + shift > 0) below LEAST_PROBABILITY."""
    beta: Tensor
    """The applied shift minus alpha, ``(C,)``."""

    @property
    def reach(self) -> float:
        """The abs(beta) below which psBN recovers a channel."""
        return self.alpha * math.exp(min(self.decay, 700.0))

    def behind_leaky_relu(self) -> 'StartingLayer':
        """Return the layer without a reach, because its channels have gradients."""
        return self._replace(kind=f'{self.kind}, Leaky ReLU', alpha=math.nan)


def inspect_start(model: nn.Module, runner: Runner) -> dict[str, StartingLayer]:
    """Judge the norm layers of a model by their parameters.

    Args:
        model (nn.Module): A model without a wrapper.
        runner (Runner): The runner that trains it.

    Returns:
        dict: Each norm layer with gamma and shift, except those of which this
        process holds only a part, as under FSDP.
    """
    decays = decay_of_schedule(runner)
    found = {}
    for name, norm in norm_layers(model):
        shift = getattr(norm, 'bias', None)
        if type(shift) is not nn.Parameter or shift.shape != (channels_of(norm),):
            continue
        fixed = keeps_statistics(model, name)
        alpha = math.nan
        if isinstance(norm, _BatchNorm) and not fixed:
            alpha = getattr(norm, 'alpha', ALPHA)
        found[name] = StartingLayer(
            'psBN' if isinstance(norm, PostShift) else infer_abbr(type(norm)).upper(),
            alpha,
            decays.get(id(shift), 0.0),
            not shift.requires_grad or id(shift) not in decays,
            fixed,
            positive_probability(norm).cpu() < LEAST_PROBABILITY,
            gamma_and_shift(norm)[1].cpu() - alpha,
        )
    return found


def starting_table(layers: Iterable[StartingLayer]) -> list[list[str]]:
    """Make a table with a row for each kind of norm layer.

    Args:
        layers (iterable[StartingLayer]): Layers that a rectifier follows.
    """
    kinds: dict[str, list[StartingLayer]] = {}
    for layer in layers:
        states = ['frozen'] * layer.frozen + ['fixed statistics'] * layer.fixed
        kind = layer.kind + (f' ({", ".join(states)})' if states else '')
        kinds.setdefault(kind, []).append(layer)
    rows = [['norm', 'layers', 'channels', 'dead', 'D', 'psBN recovers', 'of the dead']]
    for kind, own in kinds.items():
        channels = sum(len(layer.dead) for layer in own)
        dead = sum(int(layer.dead.sum()) for layer in own)
        counted = format_count(dead, channels)
        row = [kind, str(len(own)), str(channels), counted, '-', '-', '-']
        if not own[0].frozen:
            row[4] = _span([layer.decay for layer in own])
            if not any(math.isnan(layer.reach) for layer in own):
                row[5] = f'|beta| < {_span([layer.reach for layer in own])}'
                recovered = (layer.dead & (layer.beta > -layer.reach) for layer in own)
                row[6] = str(sum(int(mask.sum()) for mask in recovered))
        rows.append(row)
    return rows


def describe_start(layers: Sequence[StartingLayer], iterations: int) -> str:
    """Explain what a training can recover, with :func:`starting_table`.

    Args:
        layers (list[StartingLayer]): Layers that a rectifier follows.
        iterations (int): The length of the training that begins.
    """
    text = (
        'Channels that are dead at the start of these '
        f'{iterations} iterations, by their parameters (P(y > 0) < '
        f'{LEAST_PROBABILITY:.0e}):\n{align_columns(starting_table(layers))}'
        '\nD = weight decay / (1 - momentum) * sum of the learning rates; with '
        'AdamW, without 1 / (1 - momentum). '
        'psBN recovers a dead channel behind a ReLU if |beta| < alpha * exp(D).'
    )
    if any(
        layer.kind == 'BN' and not layer.frozen and not layer.fixed for layer in layers
    ):
        text += (
            ' Weight decay recovers no dead channel of BN, because it moves '
            'beta to 0 but not above it. The channel stays dead unless its inputs '
            'change. psBN takes the weights of BN '
            "unchanged: set norm_cfg=dict(type='psBN'). Its beta is then the "
            'shift of BN minus alpha.'
        )
    if any(layer.fixed for layer in layers):
        text += (
            ' With fixed statistics (norm_eval=True), more channels may be dead than '
            'the parameters show: count them on images with '
            'tools/analyze_collapse.py. psBN needs norm_eval=False.'
        )
    return text


def _span(values: Sequence[float]) -> str:
    if any(map(math.isnan, values)):
        return 'unknown'
    low, high = (f'{limit(values):.2g}' for limit in (min, max))
    return low if low == high else f'{low} to {high}'


def decay_of_schedule(runner: Runner) -> dict[int, float]:
    """Compute D for the rest of a training.

    The schedulers run on a copy of the optimizer's settings. A reduction on a
    plateau, which depends on metrics, is left out, so D is an upper bound
    there.

    Args:
        runner (Runner): A runner that trains, or is about to.

    Returns:
        dict: D by the ``id`` of each parameter that an optimizer holds. It is
        NaN for optimizers other than SGD and AdamW, and for schedulers that
        are neither MMEngine's nor MMDetection's.
    """
    wrappers = runner.optim_wrapper
    if not isinstance(wrappers, OptimWrapperDict):
        wrappers = dict(all=wrappers)
    schedulers = runner.param_schedulers or []
    if not isinstance(schedulers, dict):
        schedulers = dict(all=schedulers)
    decays = {}
    for name, wrapper in wrappers.items():
        groups = wrapper.param_groups
        for group, decay in zip(
            groups, _decays(wrapper, schedulers.get(name, []), runner)
        ):
            decays.update((id(p), decay) for p in group['params'])
    return decays


def _decays(wrapper: OptimWrapper, schedulers: list, runner: Runner) -> list[float]:
    """Compute D of each parameter group of an optimizer."""
    groups = wrapper.param_groups
    schedulers = [
        scheduler
        for scheduler in schedulers
        if not getattr(scheduler, 'need_val_args', False)
    ]
    if not all(
        type(scheduler).__module__.startswith(KNOWN_SCHEDULERS)
        for scheduler in schedulers
    ):
        return [math.nan] * len(groups)
    # Groups of equal settings have one D; a config may give each parameter
    # a group of its own.
    kinds = [_settings(index, group, schedulers) for index, group in enumerate(groups)]
    firsts = {kind: index for index, kind in reversed([*enumerate(kinds)])}
    simulated = SimpleNamespace(
        param_groups=[{**groups[index], 'params': []} for index in firsts.values()],
        step=SimpleNamespace(_with_counter=True),  # A scheduler asks for it.
        _global_step=0,
    )
    copies = []
    # MMEngine steps those by iteration before those by epoch.
    for scheduler in sorted(schedulers, key=lambda own: own.by_epoch):
        # Not of the optimizer, which holds the parameters.
        own = copy.deepcopy(scheduler, {id(scheduler.optimizer): simulated})
        own.base_values = [scheduler.base_values[i] for i in firsts.values()]
        own.verbose = False
        copies.append(own)
    sums = _sums(wrapper, simulated.param_groups, copies, runner)
    by_kind = dict(zip(firsts, sums))
    return [by_kind[kind] for kind in kinds]


def _settings(index: int, group: dict, schedulers: list) -> str:
    return repr(
        [scheduler.base_values[index] for scheduler in schedulers]
        + [item for item in group.items() if not isinstance(item[1], (list, str))]
    )


def _sums(
    wrapper: OptimWrapper, groups: list[dict], schedulers: list, runner: Runner
) -> list[float]:
    """Add up the shrinkage of the remaining steps, moving the schedulers."""
    end, every = runner.max_iters, getattr(wrapper, '_accumulative_counts', 1)
    # One epoch is the whole training in a loop by iterations.
    epoch = math.ceil(end / max(1, runner.max_epochs))
    sums = [0.0] * len(groups)
    for done in range(runner.iter + 1, end + 1):
        if done % every == 0 or done == end:
            for index, group in enumerate(groups):
                sums[index] += _rate(wrapper.optimizer, group)
        for scheduler in schedulers:
            if not scheduler.by_epoch or done % epoch == 0:
                scheduler.step()
    return sums


def _rate(optimizer: torch.optim.Optimizer, group: dict) -> float:
    """Return the share that a step removes from a parameter without gradient."""
    rate = float(group['lr']) * group.get('weight_decay', 0)
    if not rate:
        return 0.0
    if isinstance(optimizer, torch.optim.SGD):
        momentum = group['momentum']
        # In the long run: the step has the decay of all steps before it.
        return rate * (1 - group['dampening'] * bool(momentum)) / (1 - momentum)
    if isinstance(optimizer, torch.optim.AdamW) or group.get('decoupled_weight_decay'):
        return rate
    return math.nan
