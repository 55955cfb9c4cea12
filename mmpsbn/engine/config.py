"""Configs as the tools use them: read, completed and checked at the door."""

import os
import os.path as osp
import tempfile
from difflib import get_close_matches
from typing import Dict, Iterator, List, Optional

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry

from mmpsbn.layers import NORM_TYPES
from mmpsbn.layers.post_shifted_bn import PostShift
from mmpsbn.models.efficientnet_lite import SCHEME
from mmpsbn.registry import MODELS
from .blame import blamed_on_config, in_a_sentence, is_of_disk
from .checkpoint import find_resumable, is_of_mimicnorm, read_checkpoint
from mmpsbn.errors import InputError

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
EVALUATORS = ('val_evaluator', 'test_evaluator')
# What this package reads of a config, wherever it stands there.
KINDS = {
    **dict.fromkeys(('model', 'norm_cfg', 'conv_cfg', 'optim_wrapper',
                     'default_hooks', 'dataset', 'data_prefix', 'metainfo',
                     'train_cfg', *LOADERS), dict),
    **dict.fromkeys(('data_root', 'ann_file', 'default_scope', 'work_dir',
                     'load_from'), str),
    **dict.fromkeys(('custom_hooks', 'pipeline'), (list, tuple)),
}


@blamed_on_config()
def read_config(path: str, options: Optional[dict] = None) -> Config:
    """Read a config, with the settings of the command line.

    In a pure Python config of MMEngine, whose types are classes, the types
    become names: everything that reads configs compares names.

    The environment variable MMDET_DATASETS, if set, replaces the config's
    ``data_root``.

    Raises:
        InputError: If the config cannot be read, or if its normalization
            cannot be built.
    """
    if not osp.isfile(path):
        raise InputError(f'the config {path} does not exist.')
    try:
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(options or {})
        _name_types(cfg)
    except Exception as error:  # A config is a program of the user's.
        if is_of_disk(error):
            raise
        raise InputError(f'the config {path} cannot be read: '
                         f'{in_a_sentence(error)}.') from error
    _check_kinds(dict(cfg.items()), '')
    _move_data_root(cfg)
    check_norm_types(cfg.get('model', {}), cfg.get('default_scope', 'mmdet'))
    check_deformable_convs(cfg.get('model', {}))
    return cfg


@blamed_on_config()
def load_config(path: str,
                options: Optional[dict] = None,
                work_dir: Optional[str] = None,
                launcher: str = 'none') -> Config:
    """Read a config for a run, see :func:`read_config`.

    The work dir is, in this order, the argument, the config's, or
    ``work_dirs/`` and the config's name.

    Raises:
        InputError: As read_config does, and if the work dir cannot be
            written.
    """
    cfg = read_config(path, options)
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or osp.join(
        'work_dirs',
        osp.splitext(osp.basename(path))[0])
    _check_sync_bn(cfg)
    _check_writable(cfg.work_dir)
    return cfg


def _name_types(cfg: Config) -> None:
    """Replace the classes and functions of types by their names."""
    scope = cfg.get('default_scope') or 'mmdet'
    nodes = [node for node in dicts_in(dict(cfg.items()))
             if callable(node.get('type'))]
    if not nodes:
        return
    cfg.default_scope = scope
    names = _registered_names(scope)
    for node in nodes:
        # MMEngine builds what is not registered from the class itself.
        if node['type'] in names:
            node['type'] = names[node['type']]


def _registered_names(scope: str) -> Dict[object, str]:
    """The names by which a scope finds what is registered."""
    names: Dict[object, str] = {}
    for root in vars(mmengine.registry).values():
        if not isinstance(root, Registry):
            continue
        visible = dict(root.module_dict)
        if scope in root.children:
            visible.update(root.children[scope].module_dict)
        for registry in (root, *root.children.values()):
            for name, module in registry.module_dict.items():
                names.setdefault(
                    module, name if visible.get(name) is module else
                    f'{registry.scope}.{name}')
    return names


def _check_kinds(node, place: str) -> None:
    items = node.items() if isinstance(node, dict) else enumerate(
        node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        here = f'{place}.{key}' if place else str(key)
        kinds = KINDS.get(key, object)
        if value is not None and not isinstance(value, kinds):
            kind = kinds[0] if isinstance(kinds, tuple) else kinds
            raise InputError(f'{here} of the config is {value!r}, and has to '
                             f'be a {kind.__name__}.')
        _check_kinds(value, here)


def _move_data_root(cfg: Config) -> None:
    new, old = os.environ.get('MMDET_DATASETS'), cfg.get('data_root')
    if not new or not old:
        return
    new = osp.join(new, '')

    def move(node):
        if isinstance(node, dict):
            for key, value in node.items():
                node[key] = move(value)
        elif isinstance(node, list):
            node[:] = map(move, node)
        elif isinstance(node, str) and node.startswith(old):
            return new + node[len(old):]
        return node

    for name in (*LOADERS, *EVALUATORS):
        move(cfg.get(name))
    cfg.data_root = new


def _check_writable(work_dir: str) -> None:
    try:
        os.makedirs(work_dir, exist_ok=True)
        tempfile.TemporaryFile(dir=work_dir).close()
    except OSError as error:
        raise InputError(f'the work dir {work_dir} cannot be written '
                         f'({error.strerror}); choose another with '
                         '--work-dir.') from error


def dicts_in(node) -> Iterator[dict]:
    """All dicts in a nested config."""
    if isinstance(node, dict):
        yield node
        node = node.values()
    elif not isinstance(node, (list, tuple)):
        return
    for value in node:
        yield from dicts_in(value)


def _check_sync_bn(cfg: Config) -> None:
    ours = psbn_types(cfg.get('model', {}))
    if cfg.get('sync_bn') and cfg.launcher != 'none' and ours:
        raise InputError(
            f'sync_bn={cfg.sync_bn!r} turns {ours[0]} into SyncBN, whose bias '
            'weight decay pulls to 0 instead of alpha: remove sync_bn from '
            "the config, and set norm_cfg=dict(type='psSyncBN').")


def psbn_types(model: dict) -> List[str]:
    """Return the types of psBN that the config of a model asks for."""
    types = {
        str(norm_cfg.get('type')).split('.')[-1]
        for norm_cfg in _norm_cfgs(model)
    }
    return sorted(
        name for name in types
        if issubclass(MODELS.module_dict.get(name, object), PostShift))


def _norm_cfgs(model: dict) -> Iterator[dict]:
    for node in dicts_in(model):
        if isinstance(node.get('norm_cfg'), dict):
            yield node['norm_cfg']


def check_deformable_convs(model: dict) -> None:
    """Raise if MimicNorm is asked for beside deformable convs.

    MMDetection's own word is an assertion on ``conv_cfg``.

    Raises:
        InputError: With the two settings.
    """
    for node in dicts_in(model):
        norm_cfg = node.get('norm_cfg') or {}
        if node.get('dcn') and norm_cfg.get('type') == 'MimicNorm':
            raise InputError(
                "norm_cfg=dict(type='MimicNorm') and dcn exclude each other: "
                'deformable convs have no centered filters; remove dcn, or '
                'choose psBN or BN.')


def check_norm_types(model: dict, scope: str = 'mmdet') -> None:
    """Raise if a ``norm_cfg`` names a norm layer that is not registered.

    Raises:
        InputError: With the norm layers of the most similar names.
    """
    for norm_cfg in _norm_cfgs(model):
        name = norm_cfg.get('type')
        if not isinstance(name, str):
            continue
        with DefaultScope.overwrite_default_scope(scope), \
                MODELS.switch_scope_and_registry(None) as registry:
            if registry.get(name) is not None:
                continue
            known = _norm_names(registry)
        folded = {other.lower(): other for other in known}
        near = get_close_matches(name.lower(), folded, n=4, cutoff=0.5)
        names = [folded[other] for other in near] or sorted(known)
        raise InputError(f"norm_cfg=dict(type='{name}') names no norm layer; "
                         f'did you mean {" or ".join(names)}?')


def _norm_names(registry) -> List[str]:
    names = []
    while registry is not None:
        for name, module in registry.module_dict.items():
            if isinstance(module, type) and issubclass(module, NORM_TYPES):
                names.append(name)
        registry = registry.parent
    return names


def set_resume(cfg: Config, path: Optional[str]) -> None:
    """Let a run go on from a checkpoint.

    Args:
        cfg (Config): Of the run.
        path (str, optional): The checkpoint; without it the newest whole one
            of the work dir, and where that has none the run starts as the
            config says.

    Raises:
        InputError: As :func:`~mmpsbn.engine.checkpoint.find_resumable` does.
    """
    path = path or find_resumable(cfg.work_dir)
    cfg.resume = path is not None
    cfg.load_from = path or cfg.get('load_from')


@blamed_on_config()
def check_start(cfg: Config) -> None:
    """Raise if the weights that training starts from cannot be read.

    They are those of ``load_from``, and pretrained weights named in the
    model.

    Raises:
        InputError: With the file, or with what to install.
    """
    if cfg.get('load_from'):
        _check_weights(cfg, cfg.load_from)
    for node in dicts_in(cfg.model):
        weights = node.get('checkpoint')
        if node.get('type') != 'Pretrained' or not isinstance(weights, str):
            continue
        if weights.startswith('torchvision://'):
            _check_torchvision(weights)
        elif '://' not in weights or weights.startswith(SCHEME):
            _check_weights(cfg, weights)


def _check_weights(cfg: Config, path: str) -> None:
    """That a file of weights can be read, and suits MimicNorm or its lack.

    MMEngine logs keys that do not fit and goes on.
    """
    mimic = any((node.get('conv_cfg') or {}).get('type') == 'MimicConv'
                for node in dicts_in(cfg.model))
    try:
        state = read_checkpoint(path)
    except InputError as error:
        if mimic and '://' not in path and not osp.exists(path):
            raise InputError(
                f'{error} Make it from BN weights by tools/convert.py '
                '--to mimicnorm, see configs/mimicnorm/README.md.') from error
        raise
    if not mimic and is_of_mimicnorm(state.get('state_dict', state)):
        raise InputError(
            f'the checkpoint {path} is of MimicNorm, and the model has norm '
            "layers; set conv_cfg=dict(type='MimicConv') and "
            "norm_cfg=dict(type='MimicNorm'), or take other weights.")


def _check_torchvision(weights: str) -> None:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f'the pretrained weights {weights} are found and downloaded by '
            f'torchvision, which cannot be imported ({error}). Install the '
            'torchvision that belongs to the installed torch, or name a file '
            'of yours: --cfg-options '
            'model.backbone.init_cfg.checkpoint=resnet50.pth (or '
            'model.backbone.init_cfg=None to start from scratch).') from error
