"""Configs as the tools use them: read, completed and checked."""

import os
import os.path as osp
import tempfile

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import Registry

from mmpsbn.config.errors import explain_config_errors
from mmpsbn.config.model import (
    check_deformable_convs,
    check_last_bn_types,
    check_norm_types,
    dicts_in,
    psbn_types,
)
from mmpsbn.errors import InputError, describe_error, is_disk_error

TRAINING_LOADERS = ('train_dataloader', 'val_dataloader')
LOADERS = (*TRAINING_LOADERS, 'test_dataloader')
EVALUATORS = ('val_evaluator', 'test_evaluator')
# The types of what this package reads from a config, wherever it is.
KINDS = {
    **dict.fromkeys(
        (
            'model',
            'norm_cfg',
            'conv_cfg',
            'optim_wrapper',
            'default_hooks',
            'dataset',
            'data_prefix',
            'metainfo',
            'train_cfg',
            *LOADERS,
        ),
        dict,
    ),
    **dict.fromkeys(
        ('data_root', 'ann_file', 'default_scope', 'work_dir', 'load_from'), str
    ),
    **dict.fromkeys(('custom_hooks', 'pipeline'), (list, tuple)),
}


@explain_config_errors()
def read_config(path: str, options: dict | None = None) -> Config:
    """Read a config, with the settings of the command line.

    In a pure Python config of MMEngine, types are classes. They become names,
    which the rest of this package compares.

    The environment variable MMDET_DATASETS, if set, replaces the config's
    ``data_root``.

    Raises:
        InputError: If the config cannot be read, or if its normalization
            cannot be built.
    """
    if not osp.isfile(path):
        raise InputError(
            f'the config {path} does not exist, or is not a file. Name a config file, '
            'such as those in configs/.'
        )
    try:
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(options or {})
        _name_types(cfg)
    except Exception as error:  # A config is a program of the user's.
        if is_disk_error(error):
            raise
        raise InputError(
            f'the config {path} cannot be read: {describe_error(error)}. Correct it, '
            'or --cfg-options.'
        ) from error
    _check_kinds(dict(cfg.items()), '')
    _move_data_root(cfg)
    check_norm_types(cfg)
    check_last_bn_types(cfg)
    check_deformable_convs(cfg.get('model', {}))
    return cfg


@explain_config_errors()
def load_config(
    path: str,
    options: dict | None = None,
    work_dir: str | None = None,
    launcher: str = 'none',
) -> Config:
    """Read a config for a run, see :func:`read_config`.

    The work dir is, in this order, the argument, the config's, or
    ``work_dirs/`` and the config's name.

    Raises:
        InputError: As read_config does, and if the work dir cannot be
            written.
    """
    cfg = read_config(path, options)
    cfg.launcher = launcher
    cfg.work_dir = (
        work_dir
        or cfg.get('work_dir')
        or osp.join('work_dirs', osp.splitext(osp.basename(path))[0])
    )
    _check_sync_bn(cfg)
    _check_writable(cfg.work_dir)
    return cfg


def _name_types(cfg: Config) -> None:
    """Replace the classes and functions of types by their names."""
    scope = cfg.get('default_scope') or 'mmdet'
    nodes = [node for node in dicts_in(dict(cfg.items())) if callable(node.get('type'))]
    if not nodes:
        return
    cfg.default_scope = scope
    names = _registered_names(scope)
    for node in nodes:
        # MMEngine builds what is not registered from the class itself.
        if node['type'] in names:
            node['type'] = names[node['type']]


def _registered_names(scope: str) -> dict[object, str]:
    """The names by which a scope finds what is registered."""
    names: dict[object, str] = {}
    for root in vars(mmengine.registry).values():
        if not isinstance(root, Registry):
            continue
        visible = dict(root.module_dict)
        if scope in root.children:
            visible.update(root.children[scope].module_dict)
        for registry in (root, *root.children.values()):
            for name, module in registry.module_dict.items():
                names.setdefault(
                    module,
                    name if visible.get(name) is module else f'{registry.scope}.{name}',
                )
    return names


def _check_kinds(node, place: str) -> None:
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    for key, value in node.items() if isinstance(node, dict) else ():
        here = f'{place}.{key}' if place else str(key)
        kinds = KINDS.get(key, object)
        if value is not None and not isinstance(value, kinds):
            kind = kinds[0] if isinstance(kinds, tuple) else kinds
            raise InputError(
                f'{here} of the config is {value!r}, but must be a {kind.__name__}. '
                'Correct this setting.'
            )
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
            return new + node[len(old) :]
        return node

    for name in (*LOADERS, *EVALUATORS):
        move(cfg.get(name))
    cfg.data_root = new


def _check_writable(work_dir: str) -> None:
    try:
        os.makedirs(work_dir, exist_ok=True)
        tempfile.TemporaryFile(dir=work_dir).close()
    except OSError as error:
        raise InputError(
            f'the work dir {work_dir} cannot be written '
            f'({error.strerror}); choose another with '
            '--work-dir.'
        ) from error


def _check_sync_bn(cfg: Config) -> None:
    ours = psbn_types(cfg.get('model', {}))
    if cfg.get('sync_bn') and cfg.launcher != 'none' and ours:
        raise InputError(
            f'sync_bn={cfg.sync_bn!r} turns {ours[0]} into SyncBN, whose bias '
            'weight decay pulls to 0 instead of alpha: remove sync_bn from '
            "the config, and set norm_cfg=dict(type='psSyncBN')."
        )
