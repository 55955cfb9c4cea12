"""Conversions of checkpoint files, proven before anything is kept."""

import copy
import math
import os.path as osp
import signal
import subprocess
import sys
import tempfile
from typing import NamedTuple, Sequence

import torch
from mmcv.transforms import Compose
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from torch import nn

from mmpsbn.engine.blame import blamed_on_config
from mmpsbn.engine.checkpoint import (backbone_state, check_fits, layer_of,
                                      state_of, with_own_classes)
from mmpsbn.engine.config import dicts_in
from mmpsbn.engine.whole_files import replacing
from mmpsbn.errors import InputError
from mmpsbn.registry import MODELS
from . import raw_outputs
from .raw_outputs import OutputsOf, largest_difference, same_detections
from .stock_config import (fused_model, mimicnorm_parts, psbn_inside,
                           stock_config, stock_model, type_of)
from .to_mimicnorm import Converted, to_mimicnorm
from .to_stock import fuse, stock_state

# Of the largest output, what rounding may change.
TOLERANCE = 1e-4


class Proof(NamedTuple):
    """How a stock model compares with the model it was made from."""

    difference: float
    """Largest difference of raw outputs, of the largest of each output."""
    detections: int
    """Detections of the original model on the images."""
    same: int
    """Those that the stock model has too."""


def convert_to_stock(cfg: Config, path: str, checkpoint: dict, name: str,
                     images: Sequence[str], out: str, fused: bool,
                     keep_optimizer: bool) -> Proof:
    """Write a stock config and checkpoint, and prove them.

    They are run in a new process, which cannot import this package, on the
    images; files that do not compute the same are not kept.

    Args:
        cfg (Config): Of the trained model.
        path (str): Its file.
        checkpoint (dict): Of the trained model.
        name (str): The checkpoint's, for messages.
        images (list[str]): Files of images to compare on.
        out (str): The checkpoint to write; the config is beside it, ``.py``
            in the place of ``.pth``.
        fused (bool): Whether BN is folded into convs where the stock model
            can be without.
        keep_optimizer (bool): Whether the optimizer's state goes along.

    Raises:
        InputError: If the checkpoint does not fit, if the model has parts
            that only mmpsbn has, if the files cannot be written, or if the
            outputs differ.
    """
    if keep_optimizer and (fused or any(mimicnorm_parts(cfg.model))):
        raise InputError('--keep-optimizer is for psBN without --fuse: '
                         'elsewhere the parameters are no longer the same.')
    stock_cfg = stock_model(cfg.model)
    if stock_cfg == cfg.model:
        raise InputError('the model of the config has neither psBN nor '
                         'MimicNorm, so that there is nothing to convert.')
    _check_stock(stock_cfg)
    model = build(cfg, cfg.model)
    load_weights(model, checkpoint, name)
    stock = build(cfg, stock_cfg)
    state = stock_state(model, stock)
    if fused:
        stock_cfg = fused_model(stock_cfg)
        state = fuse(stock, build(cfg, stock_cfg), state)
    text = stock_config(cfg, path, stock_cfg)
    content = dict(meta=_meta(checkpoint, name), state_dict=state)
    if keep_optimizer:
        content['optimizer'] = checkpoint.get('optimizer')
    data = load_images(cfg, images, model)
    with replacing(out, config_of(out)) as (weights_file, config_file):
        with open(config_file, 'w') as file:
            file.write(text)
        content['meta']['cfg'] = Config.fromfile(config_file).pretty_text
        save(content, weights_file)
        proof = prove(model, data, config_file, weights_file)
        if not proof.difference <= TOLERANCE:
            raise InputError(
                f'the stock model gives other outputs: they differ by '
                f'{proof.difference:.1e} of their size, and rounding explains '
                f'{TOLERANCE:.0e}. Nothing was written; please report it.')
    return proof


def convert_to_mimicnorm(cfg: Config, checkpoint: dict, name: str,
                         images: Sequence[str], out: str) -> Converted:
    """Write a MimicNorm checkpoint, made from one of the same model with BN.

    A model that has only one part of MimicNorm, its body or a last BN, is
    converted in the same way.

    If that is of another number of classes, the layers that predict them are
    left out.

    Args:
        cfg (Config): Of the model with MimicNorm.
        checkpoint (dict): Of the detector with BN or psBN, or of its
            backbone alone; so is what is written.
        name (str): The checkpoint's, for messages.
        images (list[str]): Files of images to calibrate on.
        out (str): The file to write.

    Raises:
        InputError: If the config has no part of MimicNorm, if the checkpoint
            does not fit the model with BN, or if the file cannot be written.
    """
    if not any(mimicnorm_parts(cfg.model)):
        raise InputError('the config has no MimicNorm; set '
                         "conv_cfg=dict(type='MimicConv') and "
                         "norm_cfg=dict(type='MimicNorm') where BN was.")
    source, target = build(cfg, stock_model(cfg.model)), build(cfg, cfg.model)
    data = load_images(cfg, images, target)
    state = backbone_state(checkpoint)
    if state is None:
        state = state_of(checkpoint)
    else:
        source, target = source.backbone, target.backbone
    state, reinitialized = with_own_classes(source, state)
    load_weights(source, state, name)
    with blamed_on_config():
        converted = to_mimicnorm(source, target, data)
    _check_finite(math.isfinite(converted.after))
    converted = converted._replace(
        reinitialized=reinitialized,
        state_dict={key: value for key, value in converted.state_dict.items()
                    if layer_of(key) not in reinitialized})
    with replacing(out) as (file, ):
        save(
            dict(
                meta=_meta(checkpoint, name), state_dict=converted.state_dict),
            file)
    return converted


def convert_to_psbn(cfg: Config, checkpoint: dict, name: str,
                    out: str) -> None:
    """Write a psBN checkpoint, which is the BN checkpoint, checked.

    Raises:
        InputError: If the config has no psBN, if the checkpoint does not fit
            the model, or if the file cannot be written.
    """
    if not psbn_inside(cfg.model):
        raise InputError('the config has no psBN; set '
                         "norm_cfg=dict(type='psBN') where BN was.")
    model = build(cfg, cfg.model)
    load_weights(model, checkpoint, name)
    with replacing(out) as (file, ):
        save(
            dict(meta=_meta(checkpoint, name), state_dict=model.state_dict()),
            file)


@blamed_on_config()
def build(cfg: Config, model: dict) -> nn.Module:
    """Build a model, in evaluation mode.

    Args:
        cfg (Config): Names the scope that types are looked up in.
        model (dict): The settings of the model; they are not changed.

    Raises:
        InputError: If a part of it cannot be built.
    """
    with DefaultScope.overwrite_default_scope(
            cfg.get('default_scope', 'mmdet')):
        # Detectors write into the config that they are built from.
        return MODELS.build(copy.deepcopy(model)).eval()


def load_weights(model: nn.Module, checkpoint: dict, name: str) -> None:
    """Load a checkpoint into a model that it fits.

    Args:
        model (nn.Module): The model.
        checkpoint (dict): The content of the file.
        name (str): The file, for the error message.

    Raises:
        InputError: If the checkpoint does not fit the model.
    """
    check_fits(model, checkpoint, name)
    model.load_state_dict(state_of(checkpoint), strict=False)


def _check_stock(model: dict) -> None:
    ours = [type_of(node) for node in dicts_in(model)
            if type_of(node) in MODELS.module_dict]
    if ours:
        raise InputError(
            f'the model of the config has {ours[0]}, which is a part of '
            'mmpsbn, so MMDetection cannot build a stock model of it. Use '
            'tools/export_onnx.py to run the model without mmpsbn.')


def config_of(checkpoint: str) -> str:
    """The config file that belongs to a checkpoint to be written."""
    return f'{osp.splitext(checkpoint)[0]}.py'


def _meta(checkpoint: dict, name: str) -> dict:
    meta = {
        key: value for key, value in (checkpoint.get('meta') or {}).items()
        if key in ('dataset_meta', 'epoch', 'iter', 'seed')
    }
    return dict(meta, converted_from=osp.basename(name))


def load_images(cfg: Config, files: Sequence[str], model: nn.Module) -> dict:
    """A batch of images, as the config's test pipeline prepares them."""
    with DefaultScope.overwrite_default_scope(
            cfg.get('default_scope', 'mmdet')), blamed_on_config():
        pipeline = Compose([
            step for step in get_test_pipeline_cfg(cfg)
            if not str(step['type']).endswith('Annotations')
        ])
        batch = pseudo_collate([
            pipeline(dict(img_path=file, img_id=index))
            for index, file in enumerate(files)
        ])
    return model.data_preprocessor(batch, False)


def prove(model: nn.Module, data: dict, config: str,
          checkpoint: str) -> Proof:
    """Compare a model with stock files, run where mmpsbn cannot be imported.

    Raises:
        InputError: If the model has outputs that are not finite, or if the
            stock model does not run there.
    """
    run = OutputsOf(data)
    with blamed_on_config():
        expected = run(model)
        _check_finite(all(bool(part.isfinite().all()) for part in expected))
        found = run.detections(model)
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = osp.join(folder, 'in'), osp.join(folder, 'out')
        torch.save(dict(data=data, proposals=run.proposals), inputs)
        child = subprocess.run([
            sys.executable, raw_outputs.__file__, config, checkpoint, inputs,
            outputs
        ],
                               capture_output=True,
                               text=True)
        if child.returncode:
            raise InputError('the stock model does not run without mmpsbn: '
                             f'{_why_ended(child)}')
        given = torch.load(outputs, weights_only=True)
    same = sum(map(same_detections, given['detections'], found))
    return Proof(
        largest_difference(given['raw'], expected),
        sum(len(d['labels']) for d in found), same)


def _check_finite(finite: bool) -> None:
    if not finite:
        raise InputError(
            'the model has outputs that are NaN or infinite, so the '
            'conversion cannot be checked. Nothing was written. If training '
            'has diverged, take an earlier checkpoint.')


def _why_ended(child: subprocess.CompletedProcess) -> str:
    if child.returncode < 0:
        number = -child.returncode
        return (f'signal {number} ({signal.strsignal(number)}) ended its '
                'process. If memory ran out, use fewer images: --number 1.')
    lines = child.stderr.strip().splitlines()
    return lines[-1] if lines else (
        f'its process ended with exit status {child.returncode} and without '
        'a message. Run the command again, and report it if that repeats.')


def save(content: dict, file: str) -> None:
    """Save a checkpoint.

    Raises:
        OSError: If the file cannot be written, also where torch raises
            another error.
    """
    try:
        torch.save(content, file)
    except RuntimeError as error:  # Of torch's writer, on a full disk say.
        raise OSError(str(error)) from error
