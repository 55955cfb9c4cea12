"""Removes channels that are constant wherever they arrive.

Which layers' channels belong together, through residual sums for one, is
found by Torch-Pruning: Fang et al., "DepGraph: Towards Any Structural
Pruning", arXiv:2301.12900.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmpsbn.errors import InputError

# Why a channel stays that is constant for one layer at least.
ALIVE = 'they are not constant for other layers that read them'
PADDED = 'their constant is not 0, and a conv pads them with 0'
OUTPUT = "they belong to the neck's output"
COUPLED = 'they are coupled to layers other than plain convs and linear layers'
LAST = 'a layer needs at least one channel'


class Removal(NamedTuple):
    """What was removed from a model."""

    channels: dict[str, list[int]]
    """For each conv or linear layer that lost some, the output channels."""
    sizes: dict[str, int]
    """How many output channels each of these layers had."""
    removed: int
    """Channels, one of a residual stream counted once."""
    kept: Counter
    """Channels that are constant for some layer and stay, by reason."""


def readers(model: nn.Module) -> list[str]:
    """Names of the layers that read channels: convs and linear layers."""
    return [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear))
    ]


def detector_outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return all outputs of a detector before post-processing.

    Args:
        model (nn.Module): The detector. All its parameters then require a
            gradient.
        images (Tensor): ``(N, 3, H, W)``, normalized.
    """
    # What is traced are gradients, and ResNet.eval() freezes layers again.
    model.requires_grad_(True)
    features = model.extract_feat(images)
    # A RoI extractor has their number of channels, so that these stay: what
    # no layer gives is an output to Torch-Pruning.
    outputs = [feature * 1 for feature in features]
    two_stage = hasattr(model, 'roi_head')
    head = model.rpn_head if two_stage else model.bbox_head
    outputs += [level for levels in head(features) for level in levels]
    if two_stage:
        extractor = model.roi_head.bbox_roi_extractor
        size = extractor.roi_layers[0].output_size
        rois = images.new_zeros(1, extractor.out_channels, *size)
        outputs += model.roi_head.bbox_head(rois)
    return outputs


def remove_constants(
    model: nn.Module,
    values: dict[str, Tensor],
    images: Tensor,
    forward: Callable[[nn.Module, Tensor], list[Tensor]] = detector_outputs,
) -> Removal:
    """Remove channels that are constant for every layer that reads them.

    Other than by rounding, nothing else changes: from a channel that is 0
    these layers get nothing, and what they get from another constant goes
    into their bias. Channels stay if a conv pads such a constant with 0, if
    they pass through more than plain convs, linear layers, sums and
    activations, and in the neck's outputs.

    Args:
        model (nn.Module): A detector without norm layers, those that are
            folded; it is changed.
        values (dict): See :class:`~mmpsbn.prune.constant_inputs.InputWatch`.
        images (Tensor): ``(B, 3, H, W)``, to trace the model with.
        forward (callable): Computes what the model gives, for models that are
            no detectors of MMDetection. The channels of these outputs stay.

    Raises:
        InputError: If Torch-Pruning cannot follow the model.
    """
    graph = _graph(model, images, forward)
    names = {module: name for name, module in model.named_modules()}
    plans, kept = [], Counter()
    for group in list(graph.get_all_groups()):
        remove, reasons = _judge(group, values, names)
        kept += reasons
        if remove:
            plans.append((group, remove))
    channels, sizes = {}, {}
    for group, remove in plans:
        for layer, reads in _layers(group):
            if reads:
                _absorb(layer, remove, values[names[layer]])
            else:
                channels[names[layer]] = remove
                sizes[names[layer]] = layer.weight.shape[0]
        group.prune(remove)
    removed = sum(len(remove) for _, remove in plans)
    return Removal(channels, sizes, removed, kept)


def _graph(model: nn.Module, images: Tensor, forward: Callable):
    """Torch-Pruning's graph of all but the post-processing."""
    import torch_pruning

    for module in model.modules():
        if getattr(module, 'with_cp', False):
            module.with_cp = False
    try:
        with torch.enable_grad():
            return torch_pruning.DependencyGraph().build_dependency(
                model, images, forward_fn=forward, verbose=False
            )
    except Exception as error:  # Whatever a model makes it stumble over.
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f'Torch-Pruning cannot follow this {type(model).__name__}: '
            f'{cause.rstrip(".")}. Use tools/export_onnx.py, which keeps all channels.'
        ) from error


def _layers(group) -> list[tuple[nn.Module, bool]]:
    """Convs and linear layers, and whether they read the channels."""
    graph = group._DG
    return [
        (dep.target.module, graph.is_in_channel_pruning_fn(dep.handler))
        for dep, _ in group
        if isinstance(dep.target.module, (nn.modules.conv._ConvNd, nn.Linear))
    ]


def _judge(
    group, values: dict[str, Tensor], names: dict[nn.Module, str]
) -> tuple[list[int], Counter]:
    """The channels of a group to remove, and why constant ones stay."""
    number = len(group[0].idxs)
    # Elsewhere a layer reads channels of several groups, or parts of one.
    reading = [
        layer
        for layer, reads in _layers(group)
        if reads and names[layer] in values and len(values[names[layer]]) == number
    ]
    if not reading:
        return [], Counter()
    value = torch.stack([values[names[layer]] for layer in reading])
    constant = ~value.isnan()
    somewhere, remove = constant.any(0), constant.all(0)
    padded = torch.tensor(
        [any(getattr(layer, 'padding', ())) for layer in reading], device=value.device
    )
    exact = ~((value != 0) & padded[:, None]).any(0)
    reason = _obstacle(group, reading)
    if reason:
        return [], Counter({reason: int(somewhere.sum())})
    kept = Counter(
        {ALIVE: int((somewhere & ~remove).sum()), PADDED: int((remove & ~exact).sum())}
    )
    remove = remove & exact
    if remove.all():
        remove[0] = False
        kept[LAST] += 1
    return remove.nonzero().flatten().tolist(), kept


def _obstacle(group, reading: Sequence[nn.Module]) -> str:
    """Why nothing of a group can be removed, '' if it can."""
    from torch_pruning.ops import OPTYPE

    types = {dep.target.type for dep, _ in group}
    if OPTYPE.OUTPUT in types:
        return OUTPUT
    layers = _layers(group)
    # Subclasses may pad by themselves, or compute with other weights.
    plain = types <= {OPTYPE.CONV, OPTYPE.LINEAR, OPTYPE.ELEMENTWISE} and all(
        type(layer) in (nn.Conv2d, nn.Linear) and getattr(layer, 'groups', 1) == 1
        for layer, _ in layers
    )
    if not plain or len(reading) < sum(reads for _, reads in layers):
        return COUPLED
    return ''


@torch.no_grad()
def _absorb(layer: nn.Module, channels: list[int], value: Tensor) -> None:
    """Add to a layer's bias what constant input channels give."""
    value = value[channels]
    if not value.any():
        return
    weight = (
        layer.weight[:, channels].reshape(len(layer.weight), len(channels), -1).sum(2)
    )
    if layer.bias is None:
        layer.bias = nn.Parameter(weight.new_zeros(len(weight)))
    layer.bias += weight @ value
