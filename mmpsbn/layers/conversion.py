"""Conversion of any torch model from batch norm to psBN and back."""

from functools import cache
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from mmpsbn.errors import InputError
from mmpsbn.layers.optimizer_step import StepAware
from mmpsbn.layers.post_shifted_bn import (
    PostShift,
    PSBatchNorm1d,
    PSBatchNorm2d,
    PSBatchNorm3d,
)
from mmpsbn.layers.sync_post_shifted_bn import PSSyncBatchNorm

# Maps each class of batch norm layers to its post-shifted form.
POST_SHIFTED: dict[type, type[PostShift]] = {
    nn.BatchNorm1d: PSBatchNorm1d,
    nn.BatchNorm2d: PSBatchNorm2d,
    nn.BatchNorm3d: PSBatchNorm3d,
    nn.SyncBatchNorm: PSSyncBatchNorm,
}


def convert_batchnorm(model: nn.Module, alpha: float = 0.1) -> nn.Module:
    """Turn every batch norm layer of a model into psBN, in place.

    The function of the model does not change, because each layer keeps its
    applied bias. The next optimizer steps act on beta, so weight decay pulls
    the bias to alpha. Modules and parameters remain the same objects with
    their hooks, buffers and modes. Optimizers that hold the parameters,
    shared layers and tied parameters therefore continue to work.

    BN becomes psBN, and SyncBN becomes psSyncBN. Subclasses keep their forward
    pass, which includes the activation of timm's ``BatchNormAct2d``. psBN
    layers get the new alpha. Layers without a learned bias (``affine=False``,
    ``FrozenBatchNorm2d``) and other norm layers remain unchanged. Convert to
    SyncBN before you convert to psBN.

    Args:
        model (nn.Module): Any torch model. It may be a norm layer itself.
        alpha (float): The post-shift, a finite number >= 0. Defaults to 0.1.

    Returns:
        nn.Module: The same model.

    Raises:
        InputError: If the model has no batch norm layer with a learned bias,
            or a lazy one whose number of channels is not known yet.
        ValueError: If alpha is not a finite number >= 0.

    Examples:
        >>> model = convert_batchnorm(timm.create_model('resnet50'))
    """
    PostShift.check_alpha(alpha)
    # Their class is about to change.
    layers: list[Any] = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    if any(isinstance(layer, _LazyNormBase) for layer in layers):
        raise InputError(
            f'{type(model).__name__} has lazy batch norm layers, whose number '
            'of channels is not known yet. Run the model on one batch before '
            'you convert it.'
        )
    learned = [layer for layer in layers if layer._parameters.get('bias') is not None]
    if not learned:
        others = {type(module).__name__ for module in model.modules()}
        found = sorted(name for name in others if 'norm' in name.lower())
        raise InputError(
            f'{type(model).__name__} has no batch norm layer with a learned '
            'bias, which psBN needs '
            f'(its norm layers: {", ".join(found) or "none"}). Choose a model '
            'with trained BatchNorm or SyncBatchNorm layers.'
        )
    for layer in learned:
        if not isinstance(layer, PostShift):
            layer.__class__ = _post_shifted(layer.__class__)
            layer.join_steps()
        layer.alpha = float(alpha)
        # A bias of 0 is a value here, not BN's start.
        layer._loaded = True
    return model


def revert_batchnorm(model: nn.Module) -> nn.Module:
    """Turn every psBN layer of a model into batch norm, in place.

    The function of the model does not change. psSyncBN becomes SyncBN. It is
    the inverse of :func:`convert_batchnorm` for models that were built with
    psBN, too.

    Args:
        model (nn.Module): A model with psBN.

    Returns:
        nn.Module: The same model.

    Raises:
        InputError: If the model has no psBN layer.
    """
    layers = [module for module in model.modules() if isinstance(module, PostShift)]
    if not layers:
        raise InputError(
            f'{type(model).__name__} has no psBN layer, so there is nothing to '
            'convert to batch norm. Pass the model that contains them.'
        )
    for layer in layers:
        layer.leave_steps()
        for name in ('alpha', '_loaded'):
            layer.__dict__.pop(name, None)
        layer.__class__ = _stock(type(layer))
    return model


@cache
def _post_shifted(kind: type) -> type[PostShift]:
    """Return the post-shifted form of a class of batch norm layers."""
    known = POST_SHIFTED.get(kind)
    if known is not None:
        return known
    # Pickle finds no class that a function makes, so it calls the function.
    return type(
        f'PS{kind.__name__}',
        (PostShift, kind),
        dict(__reduce__=lambda layer: (_new, (kind,), vars(layer))),
    )


def _new(kind: type) -> PostShift:
    cls = _post_shifted(kind)
    return cls.__new__(cls)


def _stock(kind: type) -> type:
    """Return the class of batch norm layers that a psBN class is made from."""
    if issubclass(kind, PSSyncBatchNorm):
        return nn.SyncBatchNorm
    return next(base for base in kind.__mro__ if not issubclass(base, StepAware))
