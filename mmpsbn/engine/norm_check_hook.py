"""Norm layers that cannot do their work, said once at the start."""

from itertools import chain
from typing import List

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from mmpsbn.layers.post_shifted_bn import PostShift
from mmpsbn.layers.sync_post_shifted_bn import PSSyncBatchNorm
from mmpsbn.registry import HOOKS


def find_idle_norms(model: nn.Module, optim_wrapper: OptimWrapper) -> List[str]:
    """Why the psBN and SyncBN layers of a model have no effect, if so.

    A few frozen layers (``frozen_stages=1``) are usual; what is reported
    holds for all layers of a kind.

    Args:
        model (nn.Module): In the mode in which it is trained.
        optim_wrapper (OptimWrapper): Its optimizer.

    Returns:
        list[str]: Sentences: what is so, and what to set.
    """
    shifted = [m for m in model.modules() if isinstance(m, PostShift)]
    synced = [
        m for m in model.modules()
        if isinstance(m, (nn.SyncBatchNorm, PSSyncBatchNorm))
    ]
    reasons = []
    for name, layers in (('psBN', shifted), ('SyncBN', synced)):
        if layers and not any(m.training for m in layers):
            reasons.append(
                f'every {name} layer is in evaluation mode while training, '
                'so that it normalizes with running statistics that never '
                'change: set norm_eval=False in the backbone')
    if shifted:
        learned = [m.beta for m in shifted if m.beta.requires_grad]
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
                'every psBN layer is frozen, so that no filter can come '
                'back: set requires_grad=True in norm_cfg, and a smaller '
                'frozen_stages')
        elif not any(decay.get(id(beta)) for beta in learned):
            reasons.append(
                'no psBN layer has weight decay on its bias, so that a '
                'collapsed filter stays collapsed: set weight_decay in the '
                'optimizer, and remove norm_decay_mult=0 or bias_decay_mult=0 '
                'from paramwise_cfg')
    return reasons


@HOOKS.register_module()
class NormCheckHook(Hook):
    """Warn once if psBN or SyncBN cannot do its work in this run.

    It looks at the model in its first training step, after ``norm_eval`` and
    ``frozen_stages`` have had their say, see :func:`find_idle_norms`.
    """

    def __init__(self) -> None:
        self._checked = False

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch=None) -> None:
        if self._checked:
            return
        self._checked = True
        reasons = find_idle_norms(runner.model, runner.optim_wrapper)
        if reasons:
            runner.logger.warning('The normalization has no effect: ' +
                                  '; '.join(reasons) + '.')
