"""MMEngine's Runner, built for the tools."""

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.hooks import LoggerHook
from mmengine.hooks.test_time_aug_hook import PrepareTTAHook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmpsbn.checkpoints.backend import use_atomic_checkpoints
from mmpsbn.config.errors import explain_config_errors
from mmpsbn.config.model import dicts_in
from mmpsbn.errors import InputError
from mmpsbn.hooks.data_check_hook import DataCheckHook
from mmpsbn.hooks.non_finite_hook import NonFiniteHook
from mmpsbn.hooks.norm_check_hook import NormCheckHook


@explain_config_errors()
def build_runner(cfg: Config) -> Runner:
    """Build the Runner of a config, with this package's checks as hooks.

    The config itself, which the Runner writes to the work dir, stays free of
    them, and of how checkpoints are written.

    Raises:
        InputError: With the part of the config that cannot be built.
    """
    if cfg.launcher != 'none' and not torch.cuda.is_available():
        _distribute_on_cpu(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    for check in (DataCheckHook, NormCheckHook, NonFiniteHook):
        if not any(isinstance(hook, check) for hook in runner.hooks):
            runner.register_hook(check())
    use_atomic_checkpoints(runner)
    _write_metrics_once(runner)
    return runner


def _write_metrics_once(runner: Runner) -> None:
    # MMEngine's hook writes a test's metrics from every process to one file,
    # which is torn when two of them write at once.
    for hook in runner.hooks:
        if isinstance(hook, LoggerHook):
            hook.after_test_epoch = master_only(hook.after_test_epoch)


def _distribute_on_cpu(cfg: Config) -> None:
    # MMEngine's launcher asks for a CUDA device; it leaves a process group
    # alone that exists, and DDP on the CPU takes no device ids.
    if cfg.launcher != 'pytorch':
        raise InputError(
            f'--launcher {cfg.launcher} needs GPUs; without any, '
            'use tools/dist_train.sh (--launcher pytorch).'
        )
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None)
    unused = cfg.get('find_unused_parameters', False)
    wrapper.update(broadcast_buffers=False, find_unused_parameters=unused)
    cfg.setdefault('model_wrapper_cfg', wrapper)


@explain_config_errors()
def set_amp(cfg: Config) -> None:
    """Train in mixed precision, as MMDetection's ``--amp`` does."""
    if not torch.cuda.is_available():
        raise InputError(
            '--amp needs a GPU, and torch found none. Train without --amp.'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.loss_scale = 'dynamic'


@explain_config_errors()
def set_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate by the batch size, as MMDetection does."""
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise InputError(
            '--auto-scale-lr needs the batch size that the '
            'learning rate is meant for; set '
            'auto_scale_lr=dict(base_batch_size=16).'
        )
    cfg.auto_scale_lr.enable = True


@explain_config_errors()
def set_tta(cfg: Config) -> PrepareTTAHook:
    """Test with test-time augmentation, as MMDetection's ``--tta`` does.

    ``tta_model`` and ``tta_pipeline`` are those of the config. Without them,
    each image is tested unchanged and flipped, and NMS merges the boxes.

    Args:
        cfg (Config): Its test pipeline is replaced.

    Returns:
        PrepareTTAHook: A hook for the Runner, which merges the detections.

    Raises:
        InputError: If the detector predicts masks.
    """
    if any(node.get('mask_head') for node in dicts_in(cfg.model)):
        raise InputError(
            '--tta does not support this detector: it predicts masks, and '
            'MMDetection merges only boxes. Test it without --tta.'
        )
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if 'tta_model' not in cfg:
        cfg.tta_model = dict(
            type='DetTTAModel',
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
        )
    if 'tta_pipeline' not in cfg:
        *steps, pack = dataset.pipeline
        if 'meta_keys' in pack:
            pack.meta_keys = [*pack.meta_keys, 'flip', 'flip_direction']
        # The first view is unchanged: VOCMetric reads its ground truth.
        flips = [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)]
        cfg.tta_pipeline = [
            *steps,
            dict(type='TestTimeAug', transforms=[flips, [pack]]),
        ]
    dataset.pipeline = cfg.tta_pipeline
    return PrepareTTAHook(cfg.tta_model.copy())
