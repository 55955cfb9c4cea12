"""What has collapsed in checkpoints: numbers, tables and figures."""

import csv
import json
import os.path as osp
from typing import Dict, List, NamedTuple, Sequence

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torch import nn

from mmpsbn.convert.conversion import build, load_images, load_weights
from mmpsbn.convert.raw_outputs import OutputsOf
from mmpsbn.engine.blame import blamed_on_config
from mmpsbn.engine.checkpoint import backbone_state
from mmpsbn.errors import InputError
from .collapse import (LEAST_PROBABILITY, ChannelWatch, Outputs, channels_of,
                       gamma_and_shift, positive_probability, stage_of)

LEAST_GAMMA = 1e-3  # A smaller gamma is called vanished.
BATCH = 4
NOISE = 256  # Pixels of a side.


class Layer(NamedTuple):
    """A norm layer, in a checkpoint and on images."""

    name: str
    channels: int
    dead: List[int]
    """Channels that are 0 behind the ReLU on every image; empty where no ReLU
    follows."""
    judged: bool
    """Whether a ReLU follows."""
    after_sum: bool
    """Whether a residual sum comes before it."""
    rarely_positive: List[int]
    """Channels with P(gamma * x_hat + shift > 0) below LEAST_PROBABILITY."""
    small_gamma: List[int]
    """Channels with abs(gamma) below LEAST_GAMMA."""
    gamma: List[float]
    shift: List[float]


def analyze(cfg: Config, checkpoint: dict, name: str,
            images: Sequence[str]) -> List[Layer]:
    """Look for collapsed channels in a checkpoint.

    Args:
        cfg (Config): Of the model.
        checkpoint (dict): Its weights, or those of its backbone alone, which
            then is all that is analyzed.
        name (str): The checkpoint's, for messages.
        images (list[str]): Files of the images that decide what is dead.
            Without any, the parameters alone are judged, and an image of
            noise shows which norm layers a ReLU follows.

    Raises:
        InputError: If the checkpoint does not fit, if the model has no norm
            layer, or if it cannot be run.
    """
    detector = model = build(cfg, cfg.model)
    backbone = backbone_state(checkpoint)
    if backbone is None or not hasattr(detector, 'backbone'):
        load_weights(detector, checkpoint, name)
    else:
        load_weights(detector.backbone, backbone, name)
        # The names of its layers are those in the detector.
        model = nn.ModuleDict(dict(backbone=detector.backbone))
    watch = ChannelWatch(model)
    if not watch.layers:
        raise InputError('the model of the config has no norm layer (BN, '
                         'psBN, GN or MimicNorm), so that no channel can '
                         'collapse behind one.')
    for start in range(0, len(images) or 1, BATCH):
        run = OutputsOf(
            load_images(cfg, images[start:start + BATCH], detector)
            if images else _noise(detector))
        with watch, blamed_on_config():
            if model is detector:
                run.detections(detector)
            else:
                run(detector.backbone)
    outputs = watch.outputs
    if not images:
        outputs = {name: Outputs(torch.zeros_like(seen.dead), seen.after_sum)
                   for name, seen in outputs.items()}
    return [
        _layer(layer_name, layer, outputs.get(layer_name))
        for layer_name, layer in watch.layers.items()
    ]


def _noise(detector: nn.Module) -> dict:
    """A batch of one image, as a data preprocessor returns it."""
    pixels = torch.randint(
        256, (3, NOISE, NOISE), generator=torch.Generator().manual_seed(0))
    shape = (NOISE, NOISE)
    sample = DetDataSample(metainfo=dict(
        img_shape=shape, ori_shape=shape, scale_factor=(1., 1.), img_id=0))
    return detector.data_preprocessor(
        dict(inputs=[pixels.byte()], data_samples=[sample]), False)


def _layer(name: str, norm: nn.Module, seen) -> Layer:
    gamma, shift = gamma_and_shift(norm)
    probability = positive_probability(norm)
    small, rarely = [], []
    if gamma is not None:
        small = _where(gamma.abs() < LEAST_GAMMA)
        rarely = _where(probability < LEAST_PROBABILITY)
    return Layer(
        name, channels_of(norm), _where(seen.dead) if seen else [],
        seen is not None, bool(seen and seen.after_sum), rarely, small,
        [] if gamma is None else gamma.tolist(),
        [] if shift is None else shift.tolist())


def _where(mask: torch.Tensor) -> List[int]:
    return mask.nonzero().flatten().tolist()


def table(layers: Sequence[Layer], images: int = 1) -> List[List[str]]:
    """Rows for each stage and in total, the first one a head.

    Without images, the columns that depend on them are left out.

    A share is of the channels that could be judged: dead, of layers that a
    ReLU follows, without and with a sum between; by parameters, of layers
    that have them and no sum.
    """
    stages: Dict[str, List[Layer]] = {}
    for layer in layers:
        stages.setdefault(stage_of(layer.name), []).append(layer)
    rows = [[
        'stage', 'layers', 'channels', 'dead', 'dead after sum',
        f'P(y > 0) < {LEAST_PROBABILITY:.0e}', f'|gamma| < {LEAST_GAMMA:.0e}'
    ]]
    for stage, own in [*stages.items(), ('all', list(layers))]:
        direct = [x for x in own if x.judged and not x.after_sum]
        summed = [x for x in own if x.judged and x.after_sum]
        known = [x for x in own if x.gamma]
        rows.append([
            stage,
            str(len(own)),
            str(sum(x.channels for x in own)),
            _share(direct, 'dead'),
            _share(summed, 'dead'),
            _share([x for x in known if x in direct], 'rarely_positive'),
            _share(known, 'small_gamma')
        ])
    return rows if images else [row[:3] + row[5:] for row in rows]


def _share(layers: Sequence[Layer], what: str) -> str:
    channels = sum(layer.channels for layer in layers)
    if not channels:
        return '-'
    found = sum(len(getattr(layer, what)) for layer in layers)
    return f'{found} ({found / channels:.1%})'


def write(results: Dict[str, List[Layer]], images: int, out: str) -> None:
    """Write ``collapse.csv``, a line a layer, and ``collapse.json``, whole.

    Args:
        results (dict): For each checkpoint its layers.
        images (int): How many decided what is dead.
        out (str): A folder.
    """
    with open(osp.join(out, 'collapse.csv'), 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow([
            'checkpoint', 'layer', 'channels', 'judged', 'after_sum', 'dead',
            'rarely_positive', 'small_gamma'
        ])
        for checkpoint, layers in results.items():
            for layer in layers:
                writer.writerow([
                    checkpoint, layer.name, layer.channels,
                    int(layer.judged), int(layer.after_sum),
                    len(layer.dead) if images else '',
                    len(layer.rarely_positive), len(layer.small_gamma)
                ])
    content = dict(
        images=images,
        least_probability=LEAST_PROBABILITY,
        least_gamma=LEAST_GAMMA,
        checkpoints={
            checkpoint: [layer._asdict() for layer in layers]
            for checkpoint, layers in results.items()
        })
    with open(osp.join(out, 'collapse.json'), 'w') as file:
        json.dump(content, file)


def dead_shares(layers: Sequence[Layer]) -> np.ndarray:
    """Share of dead channels of each layer, NaN where no ReLU follows."""
    return np.array([
        len(layer.dead) / layer.channels if layer.judged else np.nan
        for layer in layers
    ])
