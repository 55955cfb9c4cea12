"""The config of the stock model that computes the same as a model of mmpsbn."""

import copy
import os.path as osp

from mmengine.config import Config

from mmpsbn.config.model import STOCK_NORMS, dicts_in, type_of, type_without_last_bn
from mmpsbn.registry import HOOKS

# What belongs to a last BN in the dict of such a module.
LAST_BN_ARGUMENTS = ('last_bn', 'affine', 'gain', 'momentum', 'eps', 'sync')


def stock_model(model: dict) -> dict:
    """Return a model's config with BN instead of psBN and MimicNorm.

    Args:
        model (dict): It is not changed.
    """
    model = copy.deepcopy(model)
    for node in dicts_in(model):
        if type_of(node.get('conv_cfg')) == 'MimicConv':
            del node['conv_cfg']
        # Some parts of models have other names for it than norm_cfg.
        if type_of(node) == 'MimicNorm':
            # What else it has is BN's, too: eps.
            node.update(type='BN', requires_grad=True)
        if type_of(node) in STOCK_NORMS:
            node['type'] = STOCK_NORMS[type_of(node)]
            node.pop('alpha', None)
        stock = type_without_last_bn(node)
        if stock:
            node['type'] = stock
            for name in LAST_BN_ARGUMENTS:
                node.pop(name, None)
    return model


def fused_model(model: dict) -> dict:
    """A stock model's config without the BN layers that can be fused."""
    model = copy.deepcopy(model)
    # The blocks of a backbone need theirs.
    kept = {
        id(inner)
        for node in dicts_in(model)
        for name, part in node.items()
        if str(name).endswith('backbone')
        for inner in dicts_in(part)
    }
    for node in dicts_in(model):
        # Several norm layers do not fold into the conv that they share, and the
        # blocks of a ResNet need theirs in a head, too.
        if (
            id(node) not in kept
            and type_of(node.get('norm_cfg')) in STOCK_NORMS.values()
            and not type_of(node).endswith(('SepBNHead', 'ResLayer'))
        ):
            node['norm_cfg'] = None
    return model


def stock_config(cfg: Config, model: dict) -> str:
    """Return the text of a config that needs only MMDetection.

    It inherits the same configs of MMDetection, and contains the rest.

    Args:
        cfg (Config): The config to convert, as it was read from its file.
        model (dict): The stock model.

    Returns:
        str: A config file.
    """
    full = _plain(cfg.to_dict())
    full['model'] = _plain(model)
    _remove_mmpsbn(full)
    bases = mmdet_bases(cfg.filename)
    text = ''
    if bases:
        text = f'_base_ = {bases!r}\n'
        inherited = _plain(Config.fromstring(text, '.py').to_dict())
        if set(inherited) <= set(full):
            full = difference(inherited, full)
        else:
            text = ''
    return text + Config(full).pretty_text


def _remove_mmpsbn(full: dict) -> None:
    """Remove imports of this package, and its hooks, from a config."""
    imports = full.get('custom_imports') or {}
    names = imports.get('imports') or []
    names = [
        name
        for name in ([names] if isinstance(names, str) else names)
        if name.split('.')[0] != 'mmpsbn'
    ]
    if names:
        imports['imports'] = names
    else:
        full.pop('custom_imports', None)
    if 'custom_hooks' in full:
        full['custom_hooks'] = [
            hook
            for hook in full['custom_hooks'] or ()
            if type_of(hook) not in HOOKS.module_dict
        ]


def mmdet_bases(path: str) -> list[str]:
    """MMDetection's configs that a config file inherits, near ones last."""
    found = []
    for base in Config._get_base_files(path):
        if base.startswith('mmdet::'):
            found.append(base)
        elif '::' not in base:
            found += mmdet_bases(osp.join(osp.dirname(path), base))
    return found


def difference(base: dict, full: dict) -> dict:
    """The smallest dict that MMEngine merges with ``base`` to ``full``."""
    if set(base) - set(full):
        return dict(full, _delete_=True)
    changed = {}
    for key, value in full.items():
        if key not in base:
            changed[key] = value
        elif base[key] != value:
            if not isinstance(value, dict):
                changed[key] = value
            elif isinstance(base[key], dict):
                changed[key] = difference(base[key], value)
            else:
                changed[key] = dict(value, _delete_=True)
    return changed


def _plain(node):
    """Return dicts, lists and values without MMEngine's marks of scope."""
    if isinstance(node, dict):
        return {k: _plain(v) for k, v in node.items() if k != '_scope_'}
    if isinstance(node, (list, tuple)):
        return type(node)(map(_plain, node))
    return node
