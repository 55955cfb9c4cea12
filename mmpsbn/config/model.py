"""What the config of a model asks for: its dicts, norm layers and methods."""

from collections.abc import Iterator
from difflib import get_close_matches

from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry

from mmpsbn.errors import InputError
from mmpsbn.layers import NORM_TYPES
from mmpsbn.layers.last_bn import LastBN
from mmpsbn.layers.post_shifted_bn import PostShift
from mmpsbn.models.last_bn_heads import LastBNScores, describe_last_bns
from mmpsbn.registry import MODELS


def dicts_in(node) -> Iterator[dict]:
    """Iterate over all dicts in a nested config."""
    if isinstance(node, dict):
        yield node
        node = node.values()
    elif not isinstance(node, (list, tuple)):
        return
    for value in node:
        yield from dicts_in(value)


def config_scope(cfg: dict):
    """Return a context in which types are looked up as in a config."""
    return DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmdet')


def find_class(cfg: Config, registry: Registry, name) -> type | None:
    """Find the class that a config means by a type; None if there is none."""
    if not isinstance(name, str):
        return name
    with config_scope(cfg), registry.switch_scope_and_registry(None) as found:
        return found.get(name)


def psbn_types(model: dict) -> list[str]:
    """Return the types of psBN that the config of a model asks for."""
    return sorted(
        name
        for name in {type_of(node) for node in dicts_in(model)}
        if issubclass(MODELS.module_dict.get(name, object), PostShift)
    )


def check_deformable_convs(model: dict) -> None:
    """Raise if a config has both MimicNorm and deformable convolutions.

    MMDetection itself has only an assertion on ``conv_cfg``.

    Raises:
        InputError: With the two settings.
    """
    for node in dicts_in(model):
        if node.get('dcn') and type_of(node.get('norm_cfg')) == 'MimicNorm':
            raise InputError(
                "norm_cfg=dict(type='MimicNorm') and dcn exclude each other: "
                'deformable convs have no centered filters; remove dcn, or '
                'choose psBN or BN.'
            )


def check_norm_types(cfg: Config) -> None:
    """Raise if a ``norm_cfg`` names a norm layer that is not registered.

    Raises:
        InputError: With the norm layers of the most similar names.
    """
    for node in dicts_in(cfg.get('model', {})):
        norm_cfg = node.get('norm_cfg')
        name = norm_cfg.get('type') if isinstance(norm_cfg, dict) else None
        if not isinstance(name, str) or find_class(cfg, MODELS, name) is not None:
            continue
        with config_scope(cfg), MODELS.switch_scope_and_registry(None) as registry:
            known = _norm_names(registry)
        folded = {other.lower(): other for other in known}
        near = get_close_matches(name.lower(), folded, n=4, cutoff=0.5)
        names = [folded[other] for other in near] or sorted(known)
        raise InputError(
            f"norm_cfg=dict(type='{name}') is not a registered norm layer. "
            f'Did you mean {" or ".join(names)}?'
        )


def check_last_bn_types(cfg: Config) -> None:
    """Raise if a config names a last BN that is not registered.

    Raises:
        InputError: With the heads that have one, and how to add another.
    """
    for node in dicts_in(cfg.get('model', {})):
        name = type_of(node)
        if name.startswith('LastBN') and find_class(cfg, MODELS, name) is None:
            raise InputError(
                f"type='{name}' is not registered, so the model of the config cannot "
                f'be built. {describe_last_bns()}'
            )


def _norm_names(registry) -> list[str]:
    names = []
    while registry is not None:
        for name, module in registry.module_dict.items():
            if isinstance(module, type) and issubclass(module, NORM_TYPES):
                names.append(name)
        registry = registry.parent
    return names


STOCK_NORMS = {
    'psBN': 'BN',
    'psBN1d': 'BN1d',
    'psBN2d': 'BN2d',
    'psBN3d': 'BN3d',
    'psSyncBN': 'SyncBN',
}
LAST_BNS = (LastBN, LastBNScores)


def type_of(node) -> str:
    """Return the type that a dict of a config names, without our scope."""
    name = node.get('type') if isinstance(node, dict) else None
    return name.replace('mmpsbn.', '') if isinstance(name, str) else ''


def type_without_last_bn(node) -> str:
    """Return the stock type that a dict's type adds a last BN to, or ''."""
    kind = MODELS.module_dict.get(type_of(node), object)
    return kind.__bases__[-1].__name__ if issubclass(kind, LAST_BNS) else ''


def mimic_inside(model: dict) -> bool:
    """Return whether a model's config asks for MimicNorm's body anywhere."""
    return any(type_of(node.get('conv_cfg')) == 'MimicConv' for node in dicts_in(model))


def mimicnorm_parts(model: dict) -> tuple[bool, bool]:
    """Return whether a model's config has MimicNorm's body, and a last BN."""
    return mimic_inside(model), any(map(type_without_last_bn, dicts_in(model)))
