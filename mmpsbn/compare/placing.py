"""A detector's config with another normalization in the same places."""

import copy
from difflib import get_close_matches
from typing import Callable, Dict, Iterator

from mmengine.config import Config

from mmpsbn.convert.conversion import build
from mmpsbn.convert.stock_config import stock_model, type_of
from mmpsbn.engine.blame import blamed_on_config
from mmpsbn.engine.config import dicts_in
from mmpsbn.errors import InputError

GROUPS = 32  # Of MMDetection's configs with GN.
# The last BN of MimicNorm: heads, and what has it in their place.
LAST_BN_HEADS = {
    'RPNHead': 'LastBNRPNHead',
    'RetinaHead': 'LastBNRetinaHead',
    'RetinaSepBNHead': 'LastBNRetinaHead',
}
LAST_BN_LINEAR = dict(type='LastBNLinear')


@blamed_on_config()
def with_norm(cfg: Config, norm: str) -> Config:
    """A config with a normalization wherever it had one.

    These are the backbone, and the neck and heads whose ``norm_cfg`` is set.
    All but FrozenBN are trained: ``norm_eval`` is False. FrozenBN is the
    backbone's alone, as in MMDetection's configs, with BN elsewhere. GN has
    32 groups, or as many as leave four channels to each. MimicNorm takes its
    convs along, and a last BN in the heads that can have one.

    Args:
        cfg (Config): Of a detector; it stays as it is.
        norm (str): One of ``NORMS``.

    Raises:
        InputError: If there is no such normalization, or no place for one.
    """
    check_norms([norm])
    cfg = copy.deepcopy(cfg)
    cfg.model = stock_model(cfg.model)
    backbone = cfg.model.get('backbone')
    if backbone is None:
        raise InputError('the model of the config has no backbone, and so no '
                         'place that is known for a normalization.')
    # What MMDetection's backbones have where nothing is said.
    backbone.setdefault('norm_cfg', dict(type='BN', requires_grad=True))
    if 'norm_eval' in backbone or norm == 'FrozenBN':
        backbone.norm_eval = norm == 'FrozenBN'
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
            raise InputError(f'{norm} is no normalization of this comparison; '
                             f'did you mean {" or ".join(names)}?')


def _places(cfg: Config) -> Iterator[dict]:
    """The parts of a model that have norm layers."""
    for node in dicts_in(cfg.model):
        if isinstance(node.get('norm_cfg'), dict):
            yield node


def _simple(norm: str) -> Callable[[Config], None]:

    def place(cfg: Config) -> None:
        for node in _places(cfg):
            _replace(node, norm, requires_grad=True)

    return place


def _replace(node: dict, norm: str, **arguments) -> None:
    """Put a norm layer into a part of a model.

    It has the eps of the layer that it replaces, which pretrained weights may
    need (those of EfficientNet and YOLOX do).
    """
    eps = {
        key: value for key, value in node['norm_cfg'].items() if key == 'eps'
    }
    node['norm_cfg'] = dict(type=norm, **arguments, **eps)


def _frozen(cfg: Config) -> None:
    _simple('BN')(cfg)
    _replace(cfg.model.backbone, 'BN', requires_grad=False)


def _group_norm(cfg: Config) -> None:
    smallest = min(
        module.num_features for module in build(cfg, cfg.model).modules()
        if hasattr(module, 'num_features'))
    for node in _places(cfg):
        _replace(
            node,
            'GN',
            num_groups=max(1, min(GROUPS, smallest // 4)),
            requires_grad=True)


def _mimic_norm(cfg: Config) -> None:
    for node in _places(cfg):
        node['conv_cfg'] = dict(type='MimicConv')
        _replace(node, 'MimicNorm')
    for node in dicts_in(cfg.model):
        node_type = type_of(node)
        if node_type in LAST_BN_HEADS:
            node['type'] = LAST_BN_HEADS[node_type]
            # Levels share a head without norm layers.
            node.pop('num_ins', None)
        if node_type.endswith('BBoxHead'):
            node['cls_predictor_cfg'] = dict(LAST_BN_LINEAR)


NORMS: Dict[str, Callable[[Config], None]] = {
    **{norm: _simple(norm)
       for norm in ('BN', 'SyncBN', 'psBN', 'psSyncBN')},
    'FrozenBN': _frozen,
    'GN': _group_norm,
    'MimicNorm': _mimic_norm,
}
