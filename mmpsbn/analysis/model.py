"""Collapsed channels of any torch model, without MMDetection."""

from typing import NamedTuple

import torch
from torch import nn

from mmpsbn.analysis.collapse import ChannelWatch
from mmpsbn.analysis.report import Layer, align_columns, describe_layers, share
from mmpsbn.errors import InputError


class CollapseReport(NamedTuple):
    """The dead channels of a model; ``str(report)`` is a table."""

    layers: list[Layer]
    """The norm layers in the order of their names."""
    by_outputs: bool
    """Whether the model was run on inputs."""

    def __str__(self) -> str:
        rows = [['layer', 'channels', 'dead by parameters']]
        rows[0] += ['dead by outputs', 'dead after a sum'] * self.by_outputs
        parts = [(layer.name or 'model', [layer]) for layer in self.layers]
        for name, layers in [*parts, ('all', self.layers)]:
            direct = [x for x in layers if x.judged and not x.after_sum]
            summed = [x for x in layers if x.judged and x.after_sum]
            known = [x for x in (direct if self.by_outputs else layers) if x.gamma]
            row = [name, str(sum(x.channels for x in layers))]
            row += [share(known, 'rarely_positive')]
            row += [share(direct, 'dead'), share(summed, 'dead')] * self.by_outputs
            rows.append(row)
        return align_columns(rows)


def collapse_report(model: nn.Module, *inputs) -> CollapseReport:
    """Find the dead channels of a torch model.

    *By parameters*, a channel is dead if P(gamma * x_hat + shift > 0) is below
    1e-4 for a normal x_hat, see :func:`positive_probability`. *By outputs*, it
    is dead if the rectifier behind its norm layer is positive at no position
    of any input, see :class:`ChannelWatch`. The table counts residual sums in
    a separate column. With inputs, parameters are judged only where a
    rectifier follows the norm layer. Without inputs, this is not known, so
    parameters are judged everywhere.

    The model runs once in evaluation mode and without gradients. Afterwards,
    each module is in its previous mode.

    Args:
        model (nn.Module): A model with BN, psBN, GN or MimicNorm.
        inputs: The arguments of the model for one batch. If there are none,
            the report is by parameters only.

    Returns:
        CollapseReport: The norm layers with their dead channels.

    Raises:
        InputError: If the model has no norm layer.

    Examples:
        >>> print(collapse_report(model, images))
    """
    watch = ChannelWatch(model)
    if not watch.layers:
        raise InputError(
            f'{type(model).__name__} has no norm layer (BN, psBN, GN or '
            'MimicNorm), so no channel can collapse. Pass a model with norm '
            'layers.'
        )
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        if inputs:
            with watch, torch.no_grad():
                model(*inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return CollapseReport(describe_layers(watch.layers, watch.outputs), bool(inputs))
