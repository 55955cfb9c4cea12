"""MMEngine's Runner, built and run for the tools."""

import os.path as osp
import traceback
from contextlib import contextmanager

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .config import data_files, read_annotations
from .errors import InputError

CHECKS = ('DataCheckHook', 'NormCheckHook')


def build_runner(cfg: Config) -> Runner:
    """Build the Runner of a config, with this package's checks as hooks."""
    hooks = cfg.get('custom_hooks') or []
    present = {hook['type'] for hook in hooks if isinstance(hook, dict)}
    cfg.custom_hooks = hooks + [
        dict(type=name) for name in CHECKS if name not in present
    ]
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        _distribute_on_cpu(cfg)
    if 'runner_type' in cfg:
        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def _distribute_on_cpu(cfg: Config) -> None:
    # MMEngine's launcher asks for a CUDA device; it leaves a process group
    # alone that exists, and DDP on the CPU takes no device ids.
    if cfg.launcher != 'pytorch':
        raise InputError(f'--launcher {cfg.launcher} needs GPUs; without any, '
                         'use tools/dist_train.sh (--launcher pytorch).')
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    cfg.setdefault(
        'model_wrapper_cfg',
        dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False)))


def set_amp(cfg: Config) -> None:
    """Train in mixed precision, as MMDetection's ``--amp`` does."""
    if not torch.cuda.is_available():
        raise InputError('--amp needs a GPU, and none is available.')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.loss_scale = 'dynamic'


def set_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate by the batch size, as MMDetection does."""
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise InputError('--auto-scale-lr needs the batch size that the '
                         'learning rate is meant for; set '
                         'auto_scale_lr=dict(base_batch_size=16).')
    cfg.auto_scale_lr.enable = True


@contextmanager
def data_errors_explained(cfg: Config, loaders: tuple):
    """Name the file of the data set that made a run fail, if one did.

    The data set is looked through only after the failure, so that a run
    that is right pays nothing.

    Raises:
        InputError: If a file is the cause; any other error passes.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        trace = ''.join(traceback.format_exception(error))
        if 'load_data_list' in trace or 'coco_metric.py' in trace:
            for file in data_files(cfg, loaders):
                if file.endswith('.json'):
                    _check_boxes(file, read_annotations(file))
        if 'loading.py' in trace:
            for file in data_files(cfg, loaders):
                if file.endswith('.json'):
                    _check_images(file, list(data_files(cfg, loaders)))
        raise


def _check_boxes(file: str, content: dict) -> None:
    ids = set()
    for index, annotation in enumerate(content['annotations']):
        absent = {'id', 'image_id', 'category_id', 'bbox', 'area'
                  } - set(annotation)
        if absent:
            raise InputError(f'annotation {index} of {file} has no '
                             f'{", ".join(sorted(absent))}.')
        if annotation['id'] in ids:
            raise InputError(f'two annotations of {file} have the id '
                             f'{annotation["id"]}.')
        ids.add(annotation['id'])


def _check_images(file: str, files: list) -> None:
    import mmcv
    folders = [folder for folder in files if osp.isdir(folder)]
    for image in read_annotations(file)['images']:
        paths = [osp.join(folder, image['file_name']) for folder in folders]
        paths = [path for path in paths if osp.exists(path)]
        if not paths:
            raise InputError(f'the image {image["file_name"]}, listed in '
                             f'{file}, is in none of {", ".join(folders)}.')
        for path in paths:
            try:
                readable = mmcv.imread(path) is not None
            except Exception:
                readable = False
            if not readable:
                raise InputError(f'the image {path} cannot be read; replace '
                                 'it, or take it out of the annotations.')
