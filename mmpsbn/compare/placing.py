"""A detector's config with another normalization in the same places."""

import copy
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import partial

from mmengine.config import Config
from torch import nn

from mmpsbn.config.errors import explain_config_errors
from mmpsbn.config.model import dicts_in, find_class, mimicnorm_parts, type_of
from mmpsbn.convert.stock_config import stock_model
from mmpsbn.detectors.build import build_model
from mmpsbn.errors import InputError
from mmpsbn.layers import NORM_TYPES, MimicNorm
from mmpsbn.layers.last_bn import LastBN
from mmpsbn.layers.post_shifted_bn import PostShift
from mmpsbn.models.last_bn_heads import (
    SCORE_LAYERS,
    describe_last_bns,
    heads_without_last_bn,
)
from mmpsbn.registry import MODELS

GROUPS = 32  # The number of groups in MMDetection's configs with GN.
MISSING = inspect.Parameter.empty


@explain_config_errors()
def replace_norm(cfg: Config, norm: str) -> Config:
    """Place a normalization wherever a config has one.

    The places are the parts of the model whose ``norm_cfg`` is set, by the
    config or by default. Layer norm keeps its place, because it normalizes
    tokens. So does GN next to a backbone without GN, because MMDetection has
    it in heads that pyramid levels share. :func:`describe_placing` names the
    norm layers that stay.

    FrozenBN and norm_eval are in the backbones, which take ``norm_eval``, and
    BN is in the other parts. They fix its running statistics, and FrozenBN its
    gamma and beta, too. Every other normalization has ``norm_eval=False``. GN
    has 32 groups, or the largest number that divides the
    channels of every layer and leaves at least four channels per group.
    MimicNorm comes with its convolutions, and with a last BN in the heads that
    support one. BN+LastBN is BN with a last BN in the heads, and MimicBody is
    MimicNorm without a last BN.

    Args:
        cfg (Config): The config of a detector; it is not changed.
        norm (str): One of ``NORMALIZATIONS``.

    Raises:
        InputError: If the normalization is unknown, or if the model has no
            place for it.
    """
    check_norms([norm])
    cfg = copy.deepcopy(cfg)
    cfg.model = stock_model(cfg.model)
    if cfg.model.get('backbone') is None:
        raise InputError(
            'the model of the config has no backbone, so no place for a '
            'normalization is known. Choose a detector with a backbone.'
        )
    for node in dicts_in(cfg.model):
        default = _find_default(cfg, node, 'norm_cfg')
        if isinstance(default, dict):
            node.setdefault('norm_cfg', copy.deepcopy(default))
        if _find_default(cfg, node, 'norm_eval') is not MISSING:
            node['norm_eval'] = norm in FIXED
    if not any(_find_places(cfg)):
        raise InputError(
            f'{norm} has no place in the model of the config: its backbone '
            f'{type_of(cfg.model.backbone)} and its other parts have no batch '
            'norm that their norm_cfg could replace. Choose a detector with '
            'batch norm, such as one with a ResNet.'
        )
    for place in NORMALIZATIONS[norm]:
        place(cfg)
    imports = cfg.get('custom_imports') or {}
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else names
    if 'mmpsbn' not in names:
        cfg.custom_imports = dict(imports, imports=[*names, 'mmpsbn'])
    return cfg


def check_norms(norms) -> None:
    """Raise an InputError with similar names if a normalization is unknown."""
    for norm in norms:
        if norm not in NORMALIZATIONS:
            folded = {name.lower(): name for name in NORMALIZATIONS}
            near = get_close_matches(norm.lower(), folded, n=3, cutoff=0.5)
            names = [folded[name] for name in near or folded]
            raise InputError(
                f'{norm} is not a normalization of this comparison. '
                f'Did you mean {" or ".join(names)}?'
            )


def describe_placing(cfg: Config, cfgs: dict[str, Config]) -> list[str]:
    """Describe what :func:`replace_norm` could not place, and what it changed.

    Raises:
        InputError: If a normalization does not fit the detector, or if the
            detector has no layer that a normalization replaces.
    """
    # psBN marks the layers that a comparison replaces.
    model = build_model(cfg, replace_norm(cfg, 'psBN').model).train()
    kept = _count_other_norms(model, PostShift)
    remarks = []
    if kept:
        remarks.append(
            f'These norm layers are the same in every run: {_format_counts(kept)}. '
            'A comparison replaces batch norm that a norm_cfg sets.'
        )
    layers = [layer for layer in model.modules() if isinstance(layer, PostShift)]
    if not layers:
        raise InputError(
            'the detector has no norm layer to replace: no part of its model '
            'builds the norm layers that its norm_cfg names. Choose a '
            'detector with batch norm, such as one with a ResNet.'
        )
    if not any(layer.training for layer in layers):
        remarks.append(
            'Every norm layer that a comparison replaces stays in evaluation mode, so '
            'no run normalizes with batch statistics.'
        )
    for norm, placed in cfgs.items():
        body, last_bn = mimicnorm_parts(placed.model)
        if not (body or last_bn):
            continue
        try:
            model = build_model(placed)
        except InputError as error:
            raise InputError(
                f'{norm} does not fit the detector: {error} '
                f'Leave {norm} out of --norms.'
            ) from error
        others = _count_other_norms(model, MimicNorm) - kept
        if body and others:
            remarks.append(
                f'{norm} has BN in {_format_counts(others)}, because '
                'these parts take no conv_cfg.'
            )
        heads = heads_without_last_bn(model)
        if heads and norm != 'MimicBody':
            remarks.append(
                f'{norm} has no last BN in {", ".join(heads)}, so its mAP '
                f'is that of a part of the method. {describe_last_bns()}'
            )
    own = _fixed_statistics(cfg)
    if own and cfgs and own not in cfgs:
        remarks.append(
            "The config fixes the running statistics (norm_eval=True, MMDetection's "
            f'default), and no run has its normalization. Add {own} to --norms to '
            'compare with it.'
        )
    return remarks + config_differences(cfgs)


def _fixed_statistics(cfg: Config) -> str | None:
    """Name the normalization of FIXED that a config has, if it has one."""
    for node in dicts_in(cfg.model):
        norm_cfg, norm_eval = (
            node.get(name, _find_default(cfg, node, name))
            for name in ('norm_cfg', 'norm_eval')
        )
        batch_norm = type_of(norm_cfg) in ('BN', 'BN2d', 'SyncBN')
        if batch_norm and norm_eval not in (False, MISSING):
            return 'norm_eval' if norm_cfg.get('requires_grad', True) else 'FrozenBN'
    return None


def config_differences(cfgs: dict[str, Config]) -> list[str]:
    """Describe where configs differ in more than their norm layers.

    The convolutions of MimicNorm belong to its norm layers. All configs are
    compared with the first.
    """
    parts = {norm: _remove_norm_layers(cfg.to_dict()) for norm, cfg in cfgs.items()}
    first = next(iter(parts), None)
    remarks = []
    for norm, part in parts.items():
        found = '; '.join(
            f'{key} is {_format_value(new)} instead of {_format_value(old)}'
            for key, old, new in _find_differences(parts[first], part)
        )
        if found:
            remarks.append(
                f'The config of {norm} differs from that of {first} in more '
                f'than its norm layers: {found}.'
            )
    return remarks


def _remove_norm_layers(node):
    if isinstance(node, dict):
        mimic = node.get('conv_cfg') is None or type_of(node['conv_cfg']) == 'MimicConv'
        left_out = {'norm_cfg', *['conv_cfg'] * mimic}
        return {
            key: _remove_norm_layers(value)
            for key, value in node.items()
            if key not in left_out
        }
    if isinstance(node, (list, tuple)):
        return [_remove_norm_layers(value) for value in node]
    return node


def _find_differences(old, new, key: str = '') -> Iterator[tuple]:
    """Iterate over the settings that differ: name, old and new value."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            place = f'{key}.{name}' if key else str(name)
            values = old.get(name, MISSING), new.get(name, MISSING)
            yield from _find_differences(*values, place)
    elif old is not new and old != new:
        yield key, old, new


def _format_value(value) -> str:
    return 'the default' if value is MISSING else repr(value)


def _count_other_norms(model: nn.Module, placed: type) -> Counter:
    """Count norm layers that are not of the class ``placed``, by part."""
    return Counter(
        f'{".".join(name.split(".")[: 1 + name.startswith("roi_head")])} '
        f'({type(layer).__name__})'
        for name, layer in model.named_modules()
        if isinstance(layer, NORM_TYPES) and not isinstance(layer, placed)
    )


def _format_counts(layers: Counter) -> str:
    return ', '.join(f'{count} in {part}' for part, count in layers.items())


def _find_default(cfg: Config, node: dict, name: str):
    """Find the default of an argument of a node's class; MISSING if it has none."""
    kind = find_class(cfg, MODELS, node.get('type'))
    for parent in getattr(kind, '__mro__', ()):
        if '__init__' in vars(parent):
            parameters = inspect.signature(parent.__init__).parameters
            if name in parameters:
                return parameters[name].default
            # Only **kwargs pass an argument to the next class.
            if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
                break
    return MISSING


def _find_places(cfg: Config) -> Iterator[dict]:
    """Iterate over the parts of a model whose normalization is replaced."""
    only_gn = type_of(cfg.model.backbone.get('norm_cfg')) == 'GN'
    for node in dicts_in(cfg.model):
        kind = type_of(node.get('norm_cfg'))
        kept = kind.startswith('LN') or kind.endswith(('1d', '3d'))
        kept = kept or kind == 'GN' and not only_gn
        if isinstance(node.get('norm_cfg'), dict) and not kept:
            yield node


def _select_settings(norm_cfg: dict, *names: str) -> dict:
    """Select settings that pretrained weights with BN were trained with."""
    if 'num_groups' in norm_cfg:
        return {}
    return {name: norm_cfg[name] for name in names if name in norm_cfg}


def _place_batch_norm(cfg: Config, norm: str = 'BN') -> None:
    for node in _find_places(cfg):
        settings = _select_settings(node['norm_cfg'], 'eps', 'momentum')
        node['norm_cfg'] = dict(type=norm, requires_grad=True, **settings)


def _fix_statistics(cfg: Config, norm: str, trained: bool) -> None:
    fixed = [node for node in _find_places(cfg) if node.get('norm_eval')]
    if not fixed:
        raise InputError(
            f'{norm} has no place in the model of the config: no part with '
            f'batch norm takes norm_eval. Leave {norm} out of --norms.'
        )
    for node in fixed:
        node['norm_cfg']['requires_grad'] = trained


def _place_group_norm(cfg: Config) -> None:
    marked = copy.deepcopy(cfg)
    _place_batch_norm(marked, 'psBN')
    channels = [
        layer.num_features
        for layer in build_model(marked).modules()
        if isinstance(layer, PostShift)
    ]
    most = max(1, min(GROUPS, min(channels) // 4))
    common = math.gcd(*channels)
    groups = max(n for n in range(1, most + 1) if common % n == 0)
    for node in _find_places(cfg):
        if type_of(node['norm_cfg']) != 'GN':
            node['norm_cfg'] = dict(type='GN', num_groups=groups, requires_grad=True)


def _place_mimic_body(cfg: Config) -> None:
    for node in _find_places(cfg):
        if _find_default(cfg, node, 'conv_cfg') is MISSING:
            node['norm_cfg'] = dict(type='BN', requires_grad=True)
            continue
        node['conv_cfg'] = dict(type='MimicConv')
        settings = _select_settings(node['norm_cfg'], 'eps')
        node['norm_cfg'] = dict(type='MimicNorm', **settings)
    for node in dicts_in(cfg.model):
        if type_of(node) == 'RetinaSepBNHead':
            # Without norm layers, the levels share all layers of the head.
            node['type'] = 'RetinaHead'
            node.pop('num_ins', None)


def _place_last_bn(cfg: Config) -> None:
    for node in dicts_in(cfg.model):
        kind = find_class(cfg, MODELS, node.get('type'))
        if isinstance(kind, type) and kind in SCORE_LAYERS:
            node['type'] = f'LastBN{kind.__name__}'
        predictor = type_of(node.get('cls_predictor_cfg'))
        if type_of(node).endswith('BBoxHead') and predictor in ('', 'Linear'):
            node['cls_predictor_cfg'] = dict(type='LastBNLinear')


def _check_last_bn(cfg: Config) -> None:
    if not any(isinstance(layer, LastBN) for layer in build_model(cfg).modules()):
        raise InputError(
            'BN+LastBN has no place in the model of the config: none of its heads can '
            f'have a last BN. {describe_last_bns()} Leave BN+LastBN out of --norms.'
        )


#: Whether gamma and beta are trained where the backbone's statistics are fixed.
FIXED = {'FrozenBN': False, 'norm_eval': True}
#: The steps that place each normalization in a config.
NORMALIZATIONS: dict[str, Sequence[Callable[[Config], None]]] = {
    **{
        norm: [partial(_place_batch_norm, norm=norm)]
        for norm in ('BN', 'SyncBN', 'psBN', 'psSyncBN')
    },
    **{
        norm: [_place_batch_norm, partial(_fix_statistics, norm=norm, trained=trained)]
        for norm, trained in FIXED.items()
    },
    'GN': [_place_group_norm],
    'BN+LastBN': [_place_batch_norm, _place_last_bn, _check_last_bn],
    'MimicBody': [_place_mimic_body],
    'MimicNorm': [_place_mimic_body, _place_last_bn],
}
