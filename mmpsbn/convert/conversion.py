"""Conversions of checkpoint files, verified before anything is kept."""

import errno
import math
import os.path as osp
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import torch
from mmengine.config import Config
from torch import nn

from mmpsbn.checkpoints.matching import keep_class_layers, layer_name, load_weights
from mmpsbn.checkpoints.reading import Checkpoint
from mmpsbn.config.errors import explain_config_errors
from mmpsbn.config.model import dicts_in, mimicnorm_parts, psbn_types, type_of
from mmpsbn.convert.stock_config import fused_model, stock_config, stock_model
from mmpsbn.convert.to_mimicnorm import Converted, to_mimicnorm
from mmpsbn.convert.to_stock import fuse, stock_state
from mmpsbn.detectors import outputs
from mmpsbn.detectors.agreement import Agreement
from mmpsbn.detectors.build import build_model, load_images, load_model
from mmpsbn.detectors.outputs import BatchRunner
from mmpsbn.errors import InputError
from mmpsbn.files import output_files
from mmpsbn.registry import MODELS


def convert_to_stock(
    cfg: Config,
    checkpoint: Checkpoint,
    images: Sequence[str],
    out: str,
    *,
    fused: bool = False,
) -> Agreement:
    """Write a stock config and checkpoint, and verify them.

    They are run on the images in a new process that cannot import this
    package. Files that do not compute the same are not kept.

    Args:
        cfg (Config): The config of the trained model, read from a file.
        checkpoint (Checkpoint): The trained model.
        images (list[str]): Files of images to compare on.
        out (str): The checkpoint to write. The config is next to it, with
            ``.py`` instead of ``.pth``.
        fused (bool): Whether BN is folded into convolutions where the stock
            model can be without it. Defaults to False.

    Raises:
        InputError: If the checkpoint does not fit, if the model has parts
            that only mmpsbn has, if the files cannot be written, or if the
            outputs differ.
    """
    stock_cfg = stock_model(cfg.model)
    if stock_cfg == cfg.model:
        raise InputError(
            'the model of the config has neither psBN nor MimicNorm, so there is '
            'nothing to convert. Use the config that the checkpoint was trained with.'
        )
    _check_stock(stock_cfg)
    model, stock = load_model(cfg, checkpoint), build_model(cfg, stock_cfg)
    state = stock_state(model, stock)
    if fused:
        stock_cfg = fused_model(stock_cfg)
        state = fuse(stock, build_model(cfg, stock_cfg), state)
    text = stock_config(cfg, stock_cfg)
    data = load_images(cfg, images, model)
    with output_files(out, config_path(out)) as (weights_file, config_file):
        with open(config_file, 'w') as file:
            file.write(text)
        content = dict(cfg=Config.fromfile(config_file).pretty_text)
        _save(checkpoint, state, weights_file, content)
        agreement = run_stock(model, data, config_file, weights_file)
        agreement.require('the stock model')
    return agreement


def convert_to_mimicnorm(
    cfg: Config, checkpoint: Checkpoint, images: Sequence[str], out: str
) -> Converted:
    """Write a MimicNorm checkpoint, made from one of the same model with BN.

    A model that has only MimicNorm's body or only a last BN is converted in
    the same way. If the checkpoint has another number of classes, the layers
    that predict classes are left out.

    Args:
        cfg (Config): The config of the model with MimicNorm.
        checkpoint (Checkpoint): The detector with BN or psBN, or its backbone
            alone. The result is of the same kind.
        images (list[str]): Files of images to calibrate on.
        out (str): The file to write.

    Raises:
        InputError: If the config has no part of MimicNorm, if the checkpoint
            does not fit the model with BN, or if the file cannot be written.
    """
    if not any(mimicnorm_parts(cfg.model)):
        raise InputError(
            'the config has no MimicNorm; set '
            "conv_cfg=dict(type='MimicConv') and "
            "norm_cfg=dict(type='MimicNorm') where BN was."
        )
    source = build_model(cfg, stock_model(cfg.model))
    target = build_model(cfg)
    data = load_images(cfg, images, target)
    backbone = checkpoint.backbone
    if backbone is not None:
        if not hasattr(target, 'backbone'):
            raise InputError(
                f'{checkpoint.path} has the weights of a backbone, but '
                f'{type(target).__name__} has no backbone of its own. Name a '
                'checkpoint of the whole model, or the config of a detector.'
            )
        source, target = source.backbone, target.backbone
    weights, reinitialized = keep_class_layers(source, backbone or checkpoint)
    load_weights(source, weights)
    with explain_config_errors():
        converted = to_mimicnorm(source, target, data)
    _check_finite(math.isfinite(converted.after))
    converted = converted._replace(
        reinitialized=reinitialized,
        state_dict={
            key: value
            for key, value in converted.state_dict.items()
            if layer_name(key) not in reinitialized
        },
    )
    with output_files(out) as (file,):
        _save(checkpoint, converted.state_dict, file)
    return converted


def convert_to_psbn(cfg: Config, checkpoint: Checkpoint, out: str) -> None:
    """Write a psBN checkpoint, which is the BN checkpoint, checked.

    Args:
        cfg (Config): A config with psBN.
        checkpoint (Checkpoint): Weights of the same model with BN.
        out (str): The file to write.

    Raises:
        InputError: If the config has no psBN, if the checkpoint does not fit
            the model, or if the file cannot be written.
    """
    if not psbn_types(cfg.model):
        raise InputError(
            "the config has no psBN; set norm_cfg=dict(type='psBN') where BN was."
        )
    model = load_model(cfg, checkpoint)
    with output_files(out) as (file,):
        _save(checkpoint, model.state_dict(), file)


def _check_stock(model: dict) -> None:
    ours = [
        type_of(node) for node in dicts_in(model) if type_of(node) in MODELS.module_dict
    ]
    if ours:
        raise InputError(
            f'the model of the config has {ours[0]}, which is a part of '
            'mmpsbn, so MMDetection cannot build a stock model of it. Use '
            'tools/export_onnx.py to run the model without mmpsbn.'
        )


def config_path(checkpoint: str) -> str:
    """Return the config file that belongs to a checkpoint to be written."""
    return f'{osp.splitext(checkpoint)[0]}.py'


def _save(source: Checkpoint, state: dict, file: str, meta: dict = {}) -> None:
    """Save weights that were made from a checkpoint.

    Raises:
        OSError: If the file cannot be written, also where torch raises
            another error.
    """
    kept = {
        key: value
        for key, value in source.meta.items()
        if key in ('dataset_meta', 'epoch', 'iter', 'seed')
    }
    meta = dict(kept, converted_from=osp.basename(source.path), **meta)
    _write(dict(meta=meta, state_dict=state), file)


def _write(content: dict, file: str) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:  # torch's writer, on a full disk.
        raise OSError(errno.EIO, str(error), file) from error


def run_stock(model: nn.Module, data: dict, config: str, checkpoint: str) -> Agreement:
    """Compare a model with stock files, run where mmpsbn cannot be imported.

    Args:
        model (nn.Module): The detector.
        data (dict): ``inputs`` of ``(N, 3, H, W)`` and ``data_samples``.
        config (str): The file of the stock config.
        checkpoint (str): The file of the stock weights.

    Raises:
        InputError: If the model has outputs that are not finite, or if the
            stock model does not run there.
    """
    run = BatchRunner(data)
    with explain_config_errors():
        expected = run(model)
        _check_finite(all(bool(part.isfinite().all()) for part in expected))
    with tempfile.TemporaryDirectory() as folder:
        inputs, results = osp.join(folder, 'in'), osp.join(folder, 'out')
        # Before detections, whose masks can be large, become part of the data.
        _write(dict(data=data, proposals=run.proposals), inputs)
        with explain_config_errors():
            detections = run.detections(model)
        command = [
            sys.executable,
            outputs.__file__,
            config,
            checkpoint,
            inputs,
            results,
        ]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode:
            raise InputError(
                f'the stock model does not run without mmpsbn: {_why_ended(child)}'
            )
        given = torch.load(results, weights_only=True)
    return Agreement.measure(given['raw'], expected, given['detections'], detections)


def _check_finite(finite: bool) -> None:
    if not finite:
        raise InputError(
            'the model has outputs that are NaN or infinite, so the '
            'conversion cannot be checked. Nothing was written. If training '
            'has diverged, take an earlier checkpoint.'
        )


def _why_ended(child: subprocess.CompletedProcess) -> str:
    if child.returncode < 0:
        number = -child.returncode
        return (
            f'signal {number} ({signal.strsignal(number)}) ended its '
            'process. If memory ran out, use fewer images: --number 1.'
        )
    lines = child.stderr.strip().splitlines()
    return (
        lines[-1]
        if lines
        else (
            f'its process ended with exit status {child.returncode} and without '
            'a message. Run the command again, and report it if that repeats.'
        )
    )
