"""The weights that a training starts from."""

import os.path as osp

from mmengine.config import Config

from mmpsbn.checkpoints.matching import has_mimicnorm
from mmpsbn.checkpoints.reading import Checkpoint, find_latest, read_checkpoint
from mmpsbn.config.errors import explain_config_errors
from mmpsbn.config.model import dicts_in, mimic_inside
from mmpsbn.errors import InputError
from mmpsbn.models.efficientnet_lite import SCHEME


def set_resume(cfg: Config, path: str | None) -> Checkpoint | None:
    """Let a run continue from a checkpoint.

    Args:
        cfg (Config): The config of the run. It is changed.
        path (str, optional): The checkpoint. Without it, the newest complete
            one of the work dir is taken. If there is none, the run starts as
            the config says.

    Returns:
        Checkpoint: The checkpoint; None if there is none.

    Raises:
        InputError: If it cannot be read.
    """
    checkpoint = read_checkpoint(path) if path else find_latest(cfg.work_dir)
    cfg.resume = checkpoint is not None
    cfg.load_from = checkpoint.path if checkpoint else cfg.get('load_from')
    return checkpoint


@explain_config_errors()
def check_start(cfg: Config) -> Checkpoint | None:
    """Raise if the weights that training starts from cannot be read.

    They are those of ``load_from``, and pretrained weights named in the
    model.

    Returns:
        Checkpoint: That of ``load_from``; None if a run resumes, or starts
        without one.

    Raises:
        InputError: With the file, or with what to install.
    """
    # A checkpoint to resume from has been read already.
    start = None
    if cfg.get('load_from') and not cfg.get('resume'):
        start = _check_weights(cfg, cfg.load_from)
    for node in dicts_in(cfg.model):
        weights = node.get('checkpoint')
        if node.get('type') != 'Pretrained' or not isinstance(weights, str):
            continue
        if weights.startswith('torchvision://'):
            _check_torchvision(weights)
        elif '://' not in weights or weights.startswith(SCHEME):
            _check_weights(cfg, weights)
    return start


def _check_weights(cfg: Config, path: str) -> Checkpoint:
    """Read weights, and raise if they are those of MimicNorm for BN.

    MMEngine only logs keys that do not fit.
    """
    mimic = mimic_inside(cfg.model)
    try:
        checkpoint = read_checkpoint(path)
    except InputError as error:
        if mimic and '://' not in path and not osp.exists(path):
            raise InputError(
                f'{error} Make it from BN weights with tools/convert.py '
                '--to mimicnorm, see configs/mimicnorm/README.md.'
            ) from error
        raise
    if not mimic and has_mimicnorm(checkpoint.state_dict):
        raise InputError(
            f'the checkpoint {path} has MimicNorm, but the model has norm layers. '
            "Set conv_cfg=dict(type='MimicConv') and "
            "norm_cfg=dict(type='MimicNorm'), or use other weights."
        )
    return checkpoint


def _check_torchvision(weights: str) -> None:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f'torchvision finds and downloads the pretrained weights {weights}, '
            f'and cannot be imported ({error}). Install the '
            'torchvision that belongs to the installed torch, or name your '
            'file: --cfg-options '
            'model.backbone.init_cfg.checkpoint=resnet50.pth (or '
            'model.backbone.init_cfg=None to start from scratch).'
        ) from error
