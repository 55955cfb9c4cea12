"""Checks of the norm layers, once at the start of a training."""

from contextlib import ExitStack
from itertools import chain

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmpsbn.analysis.collapse import ChannelWatch
from mmpsbn.config.model import psbn_types
from mmpsbn.hooks.recovery import StartingLayer, describe_start, inspect_start
from mmpsbn.hooks.watched_step import unwrap, watch_next_step
from mmpsbn.layers import NORM_TYPES, MimicConv
from mmpsbn.layers.post_shifted_bn import PostShift
from mmpsbn.layers.sync_post_shifted_bn import PSSyncBatchNorm
from mmpsbn.models.last_bn_heads import describe_last_bns, heads_without_last_bn
from mmpsbn.registry import HOOKS

LEVELS_APART = 3  # In area: levels are 4 apart, less what is rounded.


def find_idle_norms(model: nn.Module, optim_wrapper: OptimWrapper) -> list[str]:
    """Explain why psBN or SyncBN layers of a model have no effect.

    Some frozen layers (``frozen_stages=1``) are usual and not reported, but
    trained psBN layers without weight decay are.

    Args:
        model (nn.Module): A model in the mode in which it is trained.
        optim_wrapper (OptimWrapper): Its optimizer.

    Returns:
        list[str]: The reasons, each with what to set.
    """
    shifted = [m for m in model.modules() if isinstance(m, PostShift)]
    synced = [
        m for m in model.modules() if isinstance(m, (nn.SyncBatchNorm, PSSyncBatchNorm))
    ]
    reasons = []
    for name, layers in (('psBN', shifted), ('SyncBN', synced)):
        if layers and not any(m.training for m in layers):
            reasons.append(
                f'every {name} layer is in evaluation mode while training, '
                'so it normalizes with running statistics that never change: set '
                'norm_eval=False in the backbone, and a smaller frozen_stages'
            )
    if shifted:
        learned = [m.bias for m in shifted if m.bias.requires_grad]
        groups = optim_wrapper.param_groups
        if isinstance(groups, dict):  # Of an OptimWrapperDict.
            groups = chain.from_iterable(groups.values())
        decay = {
            id(parameter): group.get('weight_decay', 0)
            for group in groups
            for parameter in group['params']
        }
        if not learned:
            reasons.append(
                'every psBN layer is frozen, so no filter can recover: set '
                'requires_grad=True in norm_cfg, and a smaller frozen_stages'
            )
        elif not any(id(bias) in decay for bias in learned):
            reasons.append(f'{len(learned)} {PostShift.missed}'.rstrip('.'))
        elif spared := sum(not decay.get(id(bias)) for bias in learned):
            reasons.append(
                f'{spared} of {len(learned)} psBN layers have no weight decay on the '
                'bias, so a collapsed filter there stays collapsed: set weight_decay '
                'in the optimizer, and remove norm_decay_mult=0, bias_decay_mult=0 '
                'and custom_keys with decay_mult=0 from paramwise_cfg'
            )
    return reasons


class LevelWatch:
    """Find batch norm layers that normalize several pyramid levels.

    A head that RetinaNet's levels share calls its layers once for each level.
    In training, each level is normalized by its own statistics. The running
    statistics become an average over levels, which fits none of them, so
    evaluation differs from training (Wu and Johnson, "Rethinking 'Batch' in
    BatchNorm", arXiv:2105.07576).

    Args:
        model (nn.Module): A model in the mode in which it is trained. It is
            watched until :meth:`end`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._areas: dict[str, set[int]] = {}
        self._handles = [
            module.register_forward_hook(self._listener(name))
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm)
            and module.training
            and module.track_running_stats
        ]

    def _listener(self, name: str):

        def listen(module, args, output):
            area = output.shape[2:].numel()
            self._areas.setdefault(name, set()).add(area)

        return listen

    def end(self) -> list[str]:
        """Stop, and return the layers whose inputs differed in area as levels do."""
        for handle in self._handles:
            handle.remove()
        return [
            name
            for name, areas in self._areas.items()
            if max(areas) >= LEVELS_APART * min(areas)
        ]


def describe_shared(names: list[str]) -> str:
    """Describe what :class:`LevelWatch` has found, and what to do."""
    return (
        f'{len(names)} batch norm layers (for example {names[0]}) are shared by '
        'several pyramid levels. Evaluation uses average statistics that fit no '
        'level, which can reduce mAP. Use a separate norm layer for each level '
        "(RetinaNet: bbox_head type='RetinaSepBNHead' with num_ins), use GN or "
        'MimicNorm, or remove norm_cfg from this head.'
    )


def describe_others(model: nn.Module, watch: ChannelWatch) -> str:
    """Explain that filter collapse does not concern a model's activations.

    Args:
        model (nn.Module): The model.
        watch (ChannelWatch): It has seen activations other than rectifiers.
    """
    norms = sum(isinstance(module, NORM_TYPES) for module in model.modules())
    return (
        'Filter collapse concerns norm layers that a rectifier (ReLU, ReLU6 or '
        f'Leaky ReLU) follows: {len(watch.outputs)} of {norms} in this model. It '
        f'also has {", ".join(sorted(watch.others))}, which closes no channel. '
        'psBN has no filters to recover there; use BN.'
    )


@HOOKS.register_module()
class NormCheckHook(Hook):
    """Report once what the norm layers can do in this run.

    The hook looks at the model in its first training step, after
    ``norm_eval`` and ``frozen_stages`` have taken effect. It warns of norm
    layers without effect, see :func:`find_idle_norms` and
    :class:`LevelWatch`. It also warns of heads without a last BN if the body
    is MimicNorm's. It logs how many channels of the starting weights are
    dead and which of them psBN can recover, see
    :mod:`mmpsbn.hooks.recovery`. If the model has activations other than
    rectifiers, it reports that filter collapse does not concern them. With
    ``compile`` in the config, the table and this report are left out, because
    the functions that a step calls are not visible.
    """

    def __init__(self) -> None:
        self._checked = False
        self._watch: LevelWatch | None = None
        self._channels: ChannelWatch | None = None
        self._starts: dict[str, StartingLayer] = {}

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None
    ) -> None:
        if self._checked:
            return
        self._checked = True
        reasons = find_idle_norms(runner.model, runner.optim_wrapper)
        asked = psbn_types(runner.cfg.get('model') or {})
        if asked and not any(isinstance(m, PostShift) for m in runner.model.modules()):
            reasons.append(
                f'the config sets {asked[0]}, but the model has no such layer, '
                'for example because sync_bn or convert_sync_batchnorm replaced it: '
                "set norm_cfg=dict(type='psSyncBN') instead"
            )
        if reasons:
            runner.logger.warning('Check the norm layers: ' + '; '.join(reasons) + '.')
        model = unwrap(runner.model)
        heads = heads_without_last_bn(model)
        if heads and any(isinstance(m, MimicConv) for m in model.modules()):
            runner.logger.warning(
                f'MimicNorm has no last BN in {", ".join(heads)}, so this training '
                f'uses only a part of the method. {describe_last_bns()}'
            )
        self._watch = LevelWatch(runner.model)
        ended = ExitStack()
        ended.callback(self._watch.end)
        watch_next_step(runner.model, ended)
        if not runner.cfg.get('compile'):
            self._starts = inspect_start(model, runner)
            # Which layers a rectifier follows is seen in the step.
            self._channels = ChannelWatch(model)
            watch_next_step(runner.model, self._channels)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        if self._watch is None:
            return
        shared, self._watch = self._watch.end(), None
        if shared:
            runner.logger.warning(describe_shared(shared))
        if self._channels and self._channels.others:
            runner.logger.info(describe_others(runner.model, self._channels))
        seen = self._channels.outputs if self._channels else {}
        layers = [
            start.behind_leaky_relu() if seen[name].leaky else start
            for name, start in self._starts.items()
            if name in seen and not seen[name].after_sum
        ]
        if layers:
            runner.logger.info(describe_start(layers, runner.max_iters - runner.iter))
        self._channels, self._starts = None, {}
