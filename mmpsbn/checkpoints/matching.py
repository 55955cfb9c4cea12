"""Functions that compare checkpoints with models and load them."""

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmpsbn.checkpoints.reading import Checkpoint
from mmpsbn.errors import InputError


def has_mimicnorm(state: dict) -> bool:
    """Return whether a state dict has the scalars of MimicNorm.

    Args:
        state (dict): A state dict, of any kind of model.
    """
    return any(
        isinstance(key, str)
        and key.endswith('.scale')
        and f'{layer_name(key)}.weight' in state
        for key in state
    )


def mimicnorm_parts_in(state: dict) -> tuple[bool, bool]:
    """Return whether a state dict has MimicNorm's scalars and a last BN.

    A last BN is a layer with running statistics and a weight of more than
    one dimension.

    Args:
        state (dict): A state dict, of any kind of model.

    Returns:
        tuple[bool, bool]: Whether it has scalars, and whether a last BN.
    """
    last_bns = (
        isinstance(key, str)
        and key.endswith('.running_var')
        and _is_numeric(state.get(f'{layer_name(key)}.weight'))
        and state[f'{layer_name(key)}.weight'].dim() > 1
        for key in state
    )
    return has_mimicnorm(state), any(last_bns)


def layer_name(key: str) -> str:
    """Return the name of the layer that a key of a state dict belongs to.

    Args:
        key (str): For example, ``backbone.conv1.weight``.
    """
    return key.rpartition('.')[0]


def keep_class_layers(
    model: nn.Module, checkpoint: Checkpoint
) -> tuple[Checkpoint, list[str]]:
    """Prepare a checkpoint for the same detector with other classes.

    Layers that differ only in the number of their outputs predict classes, or
    boxes for each class. They keep the weights of the model. Other layers of
    a different width are not kept: the number of their inputs differs, or
    that of the next layer.

    Args:
        model (nn.Module): The detector that starts from the checkpoint.
        checkpoint (Checkpoint): The checkpoint.

    Returns:
        tuple[Checkpoint, list[str]]: The checkpoint for the model, and the
        names of the layers that keep the weights of the model.
    """
    state = checkpoint.state_dict
    layers: dict[str, dict] = {}
    for key, value in model.state_dict().items():
        layers.setdefault(layer_name(key), {})[key] = value
    kept = {
        layer: own
        for layer, own in layers.items()
        if any(value.dim() > 1 for value in own.values())
        and all(_has_other_outputs(value, state.get(key)) for key, value in own.items())
    }
    for own in kept.values():
        state.update(own)
    return checkpoint.with_state_dict(state), list(kept)


def _has_other_outputs(own: Tensor, value) -> bool:
    return (
        _is_numeric(value)
        and own.dim() == value.dim() > 0
        and len(own) != len(value)
        and own.shape[1:] == value.shape[1:]
    )


def _is_numeric(value) -> bool:
    return isinstance(value, Tensor) and not (
        value.is_complex() or value.is_meta or value.layout != torch.strided
    )


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load a checkpoint into a model.

    Args:
        model (nn.Module): The model.
        checkpoint (Checkpoint): Its weights.

    Raises:
        InputError: If the weights do not fit, see :func:`check_compatible`.
    """
    check_compatible(model, checkpoint)
    model.load_state_dict(checkpoint.state_dict, strict=False)


def check_compatible(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Raise if the weights of a checkpoint do not fit a model.

    MMEngine loads the weights that fit and logs the others, so the evaluation
    of a wrong checkpoint would give a wrong number.

    Args:
        model (nn.Module): The model, or a wrapper of it such as DDP.
        checkpoint (Checkpoint): The checkpoint.

    Raises:
        InputError: If keys are missing, unexpected, of another shape, or
            without real numbers, or if weights are NaN. The message names the
            first ones.
    """
    state = checkpoint.state_dict
    if is_model_wrapper(model):
        model = model.get_submodule('module')
    own = model.state_dict()
    missing = [
        key
        for key in own
        if key not in state and not key.endswith('num_batches_tracked')
    ]
    unexpected = [key for key in state if key not in own]
    common = [key for key in own if key in state]
    problems = {
        'missing': missing,
        'unexpected': unexpected,
        'of another shape': [
            f'{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}'
            for key in common
            if _is_numeric(state[key]) and state[key].shape != own[key].shape
        ],
        'without a dense tensor of real numbers': [
            key for key in common if not _is_numeric(state[key])
        ],
    }
    text = '; '.join(
        f'{len(keys)} {what} ({", ".join(map(str, keys[:3]))}'
        f'{", ..." if len(keys) > 3 else ""})'
        for what, keys in problems.items()
        if keys
    )
    if text:
        raise InputError(
            f'the checkpoint {checkpoint.path} does not fit the model of the '
            f'config: of {len(own)} keys {text}. '
            f'{_likely_reason(missing, list(map(str, unexpected)))}'
        )
    _check_numbers(checkpoint)


def check_any_fits(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Raise if a model would load nothing from a checkpoint.

    MMEngine only logs it, and training would start from other weights.

    Args:
        model (nn.Module): The model, or a wrapper of it such as DDP.
        checkpoint (Checkpoint): The checkpoint.

    Raises:
        InputError: With the first keys of both, or if weights are NaN.
    """
    if is_model_wrapper(model):
        model = model.get_submodule('module')
    own, state = model.state_dict(), checkpoint.state_dict
    if not own.keys() & state.keys():
        raise InputError(
            f'load_from={checkpoint.path} has no weight that fits the model of the '
            f'config: it has {", ".join(map(str, [*state][:3]))}, ..., and the model '
            f'{", ".join([*own][:3])}, .... Name a checkpoint of this detector. '
            'Weights of a backbone alone belong to model.backbone.init_cfg.checkpoint.'
        )
    _check_numbers(checkpoint)


def _check_numbers(checkpoint: Checkpoint) -> None:
    diverged = [
        key
        for key, value in checkpoint.state_dict.items()
        if _is_numeric(value) and bool(value.isnan().any())
    ]
    if diverged:
        raise InputError(
            f'{len(diverged)} tensors of the checkpoint {checkpoint.path} contain NaN '
            f'(for example {diverged[0]}): its training has diverged. Choose an '
            'earlier checkpoint.'
        )


def _likely_reason(missing: list[str], unexpected: list[str]) -> str:
    norms, scales = '.running_var', '.scale'

    def found(keys: list[str], ending: str) -> bool:
        return any(key.endswith(ending) for key in keys)

    if found(unexpected, norms) and found(missing, scales):
        return (
            'The checkpoint has norm layers, but the model has MimicNorm. '
            'Convert the checkpoint with tools/convert.py --to mimicnorm.'
        )
    if found(missing, norms) and found(unexpected, scales):
        return (
            'The checkpoint has MimicNorm, but the model has norm layers. '
            'Use the config that the checkpoint was trained with.'
        )
    return 'Was it trained with another config, or another number of classes?'
