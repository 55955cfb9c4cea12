"""From psBN or MimicNorm to a stock model, on weights, without loss.

A psBN checkpoint is a BN checkpoint. Of MimicNorm, each conv becomes a conv
and a BN that adds its bias, and a last BN folds into its layer.
"""

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mmpsbn.convert.to_mimicnorm import find_pairs
from mmpsbn.layers import MimicConv
from mmpsbn.layers.last_bn import LastBN


@torch.no_grad()
def stock_state(model: nn.Module, stock: nn.Module) -> dict[str, Tensor]:
    """The state dict of the stock model that computes what a model does.

    Args:
        model (nn.Module): With psBN or MimicNorm.
        stock (nn.Module): With BN in their place, of the same names.
    """
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for pair in find_pairs(model):
        bn = stock.get_submodule(pair.norm)
        bias = state.pop(f'{pair.conv}.bias')
        ones = torch.ones_like(bias)
        # x -> (x - 0) / sqrt(1 - eps + eps) * 1 + bias
        values = dict(
            weight=ones,
            bias=bias,
            running_mean=torch.zeros_like(bias),
            running_var=ones - bn.eps,
            num_batches_tracked=bn.num_batches_tracked,
        )
        for name, value in values.items():
            state[f'{pair.norm}.{name}'] = value
    for name, layer in model.named_modules():
        if isinstance(layer, MimicConv):
            state[f'{name}.weight'] = layer.applied_weight
        elif isinstance(layer, LastBN):
            folded = fuse_conv_bn_weights(
                layer.weight,
                None,
                layer.running_mean,
                layer.running_var,
                layer.eps,
                layer.gain,
                layer.bias,
            )
            state[f'{name}.weight'], state[f'{name}.bias'] = (
                value.detach() for value in folded
            )
    return {name: state[name] for name in stock.state_dict()}


@torch.no_grad()
def fuse(
    stock: nn.Module, fused: nn.Module, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Fold BN into convs, in the ConvModules that are to have no norm layer.

    Args:
        stock (nn.Module): The model with BN.
        fused (nn.Module): The same model, with fewer norm layers.
        state (dict): The state dict of ``stock``; it stays unchanged.

    Returns:
        dict: The state dict of ``fused``.
    """
    state = dict(state)
    for name, module in stock.named_modules():
        if (
            not isinstance(module, ConvModule)
            or not module.with_norm
            or fused.get_submodule(name).with_norm
        ):
            continue
        norm = f'{name}.{module.norm_name}.'
        values = {
            key[len(norm) :]: state.pop(key)
            for key in list(state)
            if key.startswith(norm)
        }
        conv = f'{name}.conv.'
        fused_weights = fuse_conv_bn_weights(
            state[f'{conv}weight'],
            state.get(f'{conv}bias'),
            values['running_mean'],
            values['running_var'],
            module.norm.eps,
            values.get('weight'),
            values.get('bias'),
        )
        state[f'{conv}weight'], state[f'{conv}bias'] = (
            value.detach() for value in fused_weights
        )
    return state
