"""The config of the stock model that does what a model of ours does."""

import copy
import os.path as osp
import tempfile
from typing import List, Tuple

from mmengine.config import Config

from mmpsbn.engine.config import dicts_in
from mmpsbn.registry import HOOKS

STOCK_NORMS = {
    'psBN': 'BN',
    'psBN1d': 'BN1d',
    'psBN2d': 'BN2d',
    'psBN3d': 'BN3d',
    'psSyncBN': 'SyncBN',
}
STOCK_MODULES = {
    'LastBNLinear': 'Linear',
    'LastBNRetinaHead': 'RetinaHead',
    'LastBNRetinaSepBNHead': 'RetinaSepBNHead',
    'LastBNRPNHead': 'RPNHead',
}
# What belongs to a last BN in the dict of such a module.
LAST_BN_ARGUMENTS = ('last_bn', 'affine', 'gain', 'momentum', 'eps', 'sync')


def type_of(node) -> str:
    """The type that a dict of a config names, without our scope."""
    name = node.get('type') if isinstance(node, dict) else None
    return name.replace('mmpsbn.', '') if isinstance(name, str) else ''


def mimic_inside(model: dict) -> bool:
    """Whether a model's config asks for MimicNorm anywhere."""
    return any(
        type_of(node.get('conv_cfg')) == 'MimicConv'
        for node in dicts_in(model))


def mimicnorm_parts(model: dict) -> Tuple[bool, bool]:
    """Say which parts of MimicNorm a model's config has.

    Returns:
        tuple: Whether it has the body, and whether it has a last BN.
    """
    return mimic_inside(model), any(
        type_of(node) in STOCK_MODULES for node in dicts_in(model))


def psbn_inside(model: dict) -> bool:
    """Whether a model's config asks for psBN anywhere."""
    return any(type_of(node) in STOCK_NORMS for node in dicts_in(model))


def stock_model(model: dict) -> dict:
    """A model's config with BN in the place of psBN and of MimicNorm.

    Args:
        model (dict): It stays as it is.
    """
    model = copy.deepcopy(model)
    for node in dicts_in(model):
        if type_of(node.get('conv_cfg')) == 'MimicConv':
            del node['conv_cfg']
            # What else it has is BN's, too: eps.
            node['norm_cfg'] = dict(
                node.get('norm_cfg') or {}, type='BN', requires_grad=True)
        # Some parts of models have other names for it than norm_cfg.
        if type_of(node) in STOCK_NORMS:
            node['type'] = STOCK_NORMS[type_of(node)]
            node.pop('alpha', None)
        if type_of(node) in STOCK_MODULES:
            node['type'] = STOCK_MODULES[type_of(node)]
            for name in LAST_BN_ARGUMENTS:
                node.pop(name, None)
    return model


def fused_model(model: dict) -> dict:
    """A stock model's config without the BN layers that can be fused."""
    model = copy.deepcopy(model)
    for name, part in model.items():
        if name != 'backbone':
            for node in dicts_in(part):
                # Several norm layers do not fold into the conv that they
                # share, and the blocks of a ResNet need theirs.
                if type_of(node.get('norm_cfg')) in STOCK_NORMS.values() and \
                        not type_of(node).endswith(('SepBNHead', 'ResLayer')):
                    node['norm_cfg'] = None
    return model


def stock_config(cfg: Config, path: str, model: dict) -> str:
    """The text of a config for MMDetection alone.

    It inherits what the config inherits of MMDetection's, and states the
    rest.

    Args:
        cfg (Config): The config to convert, as it was read.
        path (str): Its file, whose bases are looked up.
        model (dict): The stock model.

    Returns:
        str: A config file.
    """
    full = _plain(cfg.to_dict())
    full['model'] = _plain(model)
    _remove_mmpsbn(full)
    bases = mmdet_bases(path)
    text = ''
    if bases:
        text = f'_base_ = {bases!r}\n'
        inherited = _plain(_read(text).to_dict())
        if set(inherited) <= set(full):
            full = difference(inherited, full)
        else:
            text = ''
    return text + Config(full).pretty_text


def _remove_mmpsbn(full: dict) -> None:
    """Remove imports of this package, and its hooks, from a config."""
    imports = full.get('custom_imports') or {}
    names = imports.get('imports') or []
    names = [name for name in ([names] if isinstance(names, str) else names)
             if name.split('.')[0] != 'mmpsbn']
    if names:
        imports['imports'] = names
    else:
        full.pop('custom_imports', None)
    if 'custom_hooks' in full:
        full['custom_hooks'] = [hook for hook in full['custom_hooks'] or ()
                                if type_of(hook) not in HOOKS.module_dict]


def mmdet_bases(path: str) -> List[str]:
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


def _read(text: str) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        path = osp.join(folder, 'config.py')
        with open(path, 'w') as file:
            file.write(text)
        return Config.fromfile(path)


def _plain(cfg: dict) -> dict:
    """Dicts, lists and values, without MMEngine's marks of scope."""

    def plain(node):
        if isinstance(node, dict):
            return {k: plain(v) for k, v in node.items() if k != '_scope_'}
        if isinstance(node, (list, tuple)):
            return type(node)(map(plain, node))
        return node

    return plain(cfg)
