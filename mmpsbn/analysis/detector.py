"""Collapsed channels of a detector: its checkpoint, judged on images."""

from collections.abc import Sequence

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torch import nn

from mmpsbn.analysis.collapse import (
    LEAST_GAMMA,
    LEAST_PROBABILITY,
    ChannelWatch,
    Outputs,
    channels_of,
    gamma_and_shift,
    positive_probability,
)
from mmpsbn.analysis.report import Layer
from mmpsbn.checkpoints.matching import load_weights
from mmpsbn.checkpoints.reading import Checkpoint
from mmpsbn.config.errors import explain_config_errors
from mmpsbn.detectors.build import build_model, load_images
from mmpsbn.detectors.outputs import BatchRunner
from mmpsbn.errors import InputError

BATCH = 4
NOISE = 256  # Pixels of a side.


def analyze(cfg: Config, checkpoint: Checkpoint, images: Sequence[str]) -> list[Layer]:
    """Look for collapsed channels in a checkpoint.

    Args:
        cfg (Config): The config of the model.
        checkpoint (Checkpoint): Its weights, or those of its backbone. In the
            second case, only the backbone is analyzed.
        images (list[str]): Files of the images that decide what is dead.
            Without any, only the parameters are judged, and an image of
            noise shows which norm layers a ReLU follows.

    Raises:
        InputError: If the checkpoint does not fit, if the model has no norm
            layer, or if it cannot be run.
    """
    detector = model = build_model(cfg)
    backbone = checkpoint.backbone
    if backbone is None or not hasattr(detector, 'backbone'):
        load_weights(detector, checkpoint)
    else:
        load_weights(detector.backbone, backbone)
        # The names of its layers are those in the detector.
        model = nn.ModuleDict(dict(backbone=detector.backbone))
    watch = ChannelWatch(model)
    if not watch.layers:
        raise InputError(
            'the model of the config has no norm layer (BN, '
            'psBN, GN or MimicNorm), so that no channel can '
            'collapse behind one.'
        )
    for start in range(0, len(images) or 1, BATCH):
        run = BatchRunner(
            load_images(cfg, images[start : start + BATCH], detector)
            if images
            else _noise(detector)
        )
        with watch, explain_config_errors():
            if model is detector:
                run.detections(detector)
            else:
                run(detector.backbone)
    outputs = watch.outputs
    if not images:
        outputs = {
            name: Outputs(torch.zeros_like(seen.dead), seen.after_sum)
            for name, seen in outputs.items()
        }
    return [
        _layer(layer_name, layer, outputs.get(layer_name))
        for layer_name, layer in watch.layers.items()
    ]


def _noise(detector: nn.Module) -> dict:
    """A batch of one image, as a data preprocessor returns it."""
    pixels = torch.randint(
        256, (3, NOISE, NOISE), generator=torch.Generator().manual_seed(0)
    )
    shape = (NOISE, NOISE)
    sample = DetDataSample(
        metainfo=dict(
            img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0), img_id=0
        )
    )
    return detector.data_preprocessor(
        dict(inputs=[pixels.byte()], data_samples=[sample]), False
    )


def _layer(name: str, norm: nn.Module, seen) -> Layer:
    gamma, shift = gamma_and_shift(norm)
    probability = positive_probability(norm)
    small, rarely = [], []
    if gamma is not None:
        small = _where(gamma.abs() < LEAST_GAMMA)
        rarely = _where(probability < LEAST_PROBABILITY)
    return Layer(
        name,
        channels_of(norm),
        _where(seen.dead) if seen else [],
        seen is not None,
        bool(seen and seen.after_sum),
        rarely,
        small,
        [] if gamma is None else gamma.tolist(),
        [] if shift is None else shift.tolist(),
    )


def _where(mask: torch.Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()
