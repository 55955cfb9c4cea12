"""A detector's config with another normalization in the same places."""

import copy
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator
from difflib import get_close_matches

from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from mmpsbn.config.errors import explain_config_errors
from mmpsbn.config.model import dicts_in, mimicnorm_parts, type_of
from mmpsbn.convert.stock_config import stock_model
from mmpsbn.detectors.build import build_model
from mmpsbn.errors import InputError
from mmpsbn.layers import NORM_TYPES, MimicNorm
from mmpsbn.layers.last_bn import LastBN
from mmpsbn.layers.post_shifted_bn import PostShift
from mmpsbn.registry import MODELS

GROUPS = 32  # MMDetection's configs with GN have as many.
# Heads that can have MimicNorm's last BN, and the types that add it.
LAST_BN_HEADS = {
    'RPNHead': 'LastBNRPNHead',
    'RetinaHead': 'LastBNRetinaHead',
    'RetinaSepBNHead': 'LastBNRetinaSepBNHead',
}
A_LAST_BN_EXISTS = (
    f'A last BN exists for {", ".join(LAST_BN_HEADS)} and for the box heads '
    'of RoI heads that take cls_predictor_cfg.'
)
LAST_BN_LINEAR = dict(type='LastBNLinear')
MISSING = inspect.Parameter.empty


@explain_config_errors()
def replace_norm(cfg: Config, norm: str) -> Config:
    """Place a normalization wherever a config has one.

    The places are the parts of the model whose ``norm_cfg`` is set, by the
    config or by default. Layer norm keeps its place, because it normalizes
    tokens. So does GN next to a backbone without GN, because MMDetection has
    it in heads that pyramid levels share. :func:`placing_remarks` names the
    norm layers that stay.

    Every normalization except FrozenBN is trained: ``norm_eval`` is False.
    FrozenBN is in the parts that take ``norm_eval``, which are the backbones,
    and BN is in the others. GN has 32 groups, or the largest number that
    divides the channels of every layer and leaves at least four channels per
    group. MimicNorm comes with its convolutions, and with a last BN in the
    heads that support one. Two more normalizations separate these parts:
    BN+LastBN is BN with a last BN in the heads, and MimicBody is MimicNorm
    without a last BN.

    Args:
        cfg (Config): The config of a detector; it is not changed.
        norm (str): One of ``NORMS``.

    Raises:
        InputError: If the normalization is unknown, or if the model has no
            place for it.
    """
    check_norms([norm])
    cfg = copy.deepcopy(cfg)
    cfg.model = stock_model(cfg.model)
    if cfg.model.get('backbone') is None:
        raise InputError(
            'the model of the config has no backbone, and so no '
            'place that is known for a normalization.'
        )
    for node in dicts_in(cfg.model):
        default = _default(cfg, node, 'norm_cfg')
        if isinstance(default, dict):
            node.setdefault('norm_cfg', copy.deepcopy(default))
        if _default(cfg, node, 'norm_eval') is not MISSING:
            node['norm_eval'] = norm == 'FrozenBN'
    if not any(_places(cfg)):
        raise InputError(
            f'{norm} has no place in the model of the config: its backbone '
            f'{type_of(cfg.model.backbone)} and its other parts have no batch '
            'norm that their norm_cfg could replace. Choose a detector with '
            'batch norm, such as one with a ResNet.'
        )
    NORMS[norm](cfg)
    cfg.setdefault('custom_imports', dict(imports=[]))
    if 'mmpsbn' not in cfg.custom_imports.imports:
        cfg.custom_imports.imports.append('mmpsbn')
    return cfg


def check_norms(norms) -> None:
    """Raise if a normalization is not known.

    Raises:
        InputError: With near names.
    """
    for norm in norms:
        if norm not in NORMS:
            folded = {name.lower(): name for name in NORMS}
            near = get_close_matches(norm.lower(), folded, n=3, cutoff=0.5)
            names = [folded[name] for name in near] or list(NORMS)
            raise InputError(
                f'{norm} is no normalization of this comparison; '
                f'did you mean {" or ".join(names)}?'
            )


def placing_remarks(cfg: Config, cfgs: dict[str, Config]) -> list[str]:
    """Describe what :func:`replace_norm` could not place, and what it changed.

    Args:
        cfg (Config): The config of a detector.
        cfgs (dict[str, Config]): The config with each normalization.

    Raises:
        InputError: If a normalization does not fit the detector, or if the
            detector has no layer that a normalization replaces.
    """
    # psBN marks the layers that a comparison replaces.
    model = build_model(cfg, replace_norm(cfg, 'psBN').model).train()
    kept = _other_norms(model, PostShift)
    remarks = []
    if kept:
        remarks.append(
            f'These norm layers are the same in every run: '
            f'{_in_words(kept)}. A comparison replaces batch norm '
            'that a norm_cfg sets.'
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
            'The detector holds every norm layer that a comparison '
            'replaces in evaluation mode, so no run trains one.'
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
        beside = _other_norms(model, MimicNorm) - kept
        if body and beside:
            remarks.append(
                f'{norm} has BN in {_in_words(beside)}, because '
                'these parts take no conv_cfg.'
            )
        heads = _heads_without_last_bn(model)
        if heads and norm != 'MimicBody':
            remarks.append(
                f'{norm} is without its last BN in {", ".join(heads)}, so '
                'its mAP there is not that of the whole method. '
                f'{A_LAST_BN_EXISTS}'
            )
    return remarks + config_differences(cfgs)


def config_differences(cfgs: dict[str, Config]) -> list[str]:
    """Describe where configs differ in more than their norm layers.

    The convolutions of MimicNorm belong to its norm layers.

    Args:
        cfgs (dict[str, Config]): The config with each normalization; all are
            compared with the first.

    Returns:
        list[str]: One remark for each config that differs from the first.
    """
    if not cfgs:
        return []
    (first, base), *others = (
        (norm, _without_norm_layers(cfg.to_dict())) for norm, cfg in cfgs.items()
    )
    remarks = []
    for norm, other in others:
        found = [
            f'{key} is {_value(new)} instead of {_value(old)}'
            for key, old, new in _differences(base, other)
        ]
        if found:
            remarks.append(
                f'The config of {norm} differs from that of '
                f'{first} in more than its norm layers: '
                f'{"; ".join(found)}.'
            )
    return remarks


def _without_norm_layers(node):
    if isinstance(node, dict):
        return {
            key: _without_norm_layers(value)
            for key, value in node.items()
            if key != 'norm_cfg'
            and not (
                key == 'conv_cfg' and (value is None or type_of(value) == 'MimicConv')
            )
        }
    if isinstance(node, (list, tuple)):
        return [_without_norm_layers(value) for value in node]
    return node


def _differences(old, new, key: str = '') -> Iterator[tuple]:
    """Iterate over the settings that differ: name, old and new value."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = dict(enumerate(old)), dict(enumerate(new))
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _differences(
                old.get(name, MISSING),
                new.get(name, MISSING),
                f'{key}.{name}' if key else str(name),
            )
    elif old is not new and old != new:
        yield key, old, new


def _value(value) -> str:
    return 'the default' if value is MISSING else repr(value)


def _other_norms(model: nn.Module, placed: type) -> Counter:
    """Count norm layers that are not of the class ``placed``, by part."""
    return Counter(
        f'{".".join(name.split(".")[: 1 + name.startswith("roi_head")])} '
        f'({type(layer).__name__})'
        for name, layer in model.named_modules()
        if isinstance(layer, NORM_TYPES) and not isinstance(layer, placed)
    )


def _in_words(layers: Counter) -> str:
    return ', '.join(f'{count} in {part}' for part, count in layers.items())


def _heads_without_last_bn(model: nn.Module) -> list[str]:
    """Name the heads of a detector that score classes without a last BN."""
    heads = [
        (name, head)
        for name, head in model.named_children()
        if name.endswith('_head') and name != 'roi_head'
    ]
    boxes = getattr(getattr(model, 'roi_head', None), 'bbox_head', None)
    heads += [
        ('roi_head.bbox_head', head)
        for head in (boxes if isinstance(boxes, nn.ModuleList) else [boxes])
        if head
    ]
    found = []
    for name, head in heads:
        parts = list(head.modules())
        scores = any(isinstance(part, (nn.Conv2d, nn.Linear)) for part in parts)
        if scores and not any(isinstance(part, LastBN) for part in parts):
            found.append(f'{name} ({type(head).__name__})')
    return list(dict.fromkeys(found))


def _default(cfg: Config, node: dict, name: str):
    """Look up the default of an argument that the class of a node takes.

    Returns:
        The default; MISSING if the class does not take the argument.
    """
    kind = node.get('type')
    if isinstance(kind, str):
        with (
            DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')),
            MODELS.switch_scope_and_registry(None) as registry,
        ):
            kind = registry.get(kind)
    for parent in getattr(kind, '__mro__', ()):
        if '__init__' in vars(parent):
            parameters = inspect.signature(parent.__init__).parameters
            if name in parameters:
                return parameters[name].default
            # Only **kwargs pass an argument on to the next class.
            if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
                break
    return MISSING


def _places(cfg: Config) -> Iterator[dict]:
    """Iterate over the parts of a model whose normalization is replaced."""
    only_gn = type_of(cfg.model.backbone.get('norm_cfg')) == 'GN'
    for node in dicts_in(cfg.model):
        kind = type_of(node.get('norm_cfg'))
        if isinstance(node.get('norm_cfg'), dict) and not (
            kind.startswith('LN')
            or kind.endswith(('1d', '3d'))
            or kind == 'GN'
            and not only_gn
        ):
            yield node


def _simple(norm: str) -> Callable[[Config], None]:

    def place(cfg: Config) -> None:
        for node in _places(cfg):
            node['norm_cfg'] = dict(
                type=norm,
                requires_grad=True,
                **_batch_norm_settings(node['norm_cfg'], 'eps', 'momentum'),
            )

    return place


def _batch_norm_settings(norm_cfg: dict, *names: str) -> dict:
    """Select settings that pretrained weights with BN were trained with."""
    if 'num_groups' in norm_cfg:
        return {}
    return {name: norm_cfg[name] for name in names if name in norm_cfg}


def _frozen(cfg: Config) -> None:
    _simple('BN')(cfg)
    frozen = [node for node in _places(cfg) if node.get('norm_eval')]
    if not frozen:
        raise InputError(
            'FrozenBN has no place in the model of the config: no part with '
            'batch norm takes norm_eval. Leave FrozenBN out of --norms.'
        )
    for node in frozen:
        node['norm_cfg']['requires_grad'] = False


def _group_norm(cfg: Config) -> None:
    marked = copy.deepcopy(cfg)
    _simple('psBN')(marked)
    channels = [
        layer.num_features
        for layer in build_model(marked).modules()
        if isinstance(layer, PostShift)
    ]
    most = max(1, min(GROUPS, min(channels) // 4))
    common = math.gcd(*channels)
    groups = max(n for n in range(1, most + 1) if common % n == 0)
    for node in _places(cfg):
        if type_of(node['norm_cfg']) != 'GN':
            node['norm_cfg'] = dict(type='GN', num_groups=groups, requires_grad=True)


def _mimic_body(cfg: Config) -> None:
    for node in _places(cfg):
        if _default(cfg, node, 'conv_cfg') is MISSING:
            node['norm_cfg'] = dict(type='BN', requires_grad=True)
            continue
        node['conv_cfg'] = dict(type='MimicConv')
        node['norm_cfg'] = dict(
            type='MimicNorm', **_batch_norm_settings(node['norm_cfg'], 'eps')
        )
    for node in dicts_in(cfg.model):
        if type_of(node) == 'RetinaSepBNHead':
            # Levels share a head without norm layers.
            node['type'] = 'RetinaHead'
            node.pop('num_ins', None)


def _last_bn(cfg: Config) -> None:
    for node in dicts_in(cfg.model):
        node_type = type_of(node)
        if node_type in LAST_BN_HEADS:
            node['type'] = LAST_BN_HEADS[node_type]
        if node_type.endswith('BBoxHead') and type_of(
            node.get('cls_predictor_cfg')
        ) in ('', 'Linear'):
            node['cls_predictor_cfg'] = dict(LAST_BN_LINEAR)


def _mimic_norm(cfg: Config) -> None:
    _mimic_body(cfg)
    _last_bn(cfg)


def _bn_with_last_bn(cfg: Config) -> None:
    _simple('BN')(cfg)
    _last_bn(cfg)
    if not any(isinstance(layer, LastBN) for layer in build_model(cfg).modules()):
        raise InputError(
            'BN+LastBN has no place in the model of the config: none of its '
            f'heads can have a last BN. {A_LAST_BN_EXISTS} Leave BN+LastBN '
            'out of --norms.'
        )


NORMS: dict[str, Callable[[Config], None]] = {
    **{norm: _simple(norm) for norm in ('BN', 'SyncBN', 'psBN', 'psSyncBN')},
    'FrozenBN': _frozen,
    'GN': _group_norm,
    'BN+LastBN': _bn_with_last_bn,
    'MimicBody': _mimic_body,
    'MimicNorm': _mimic_norm,
}
