"""Collapsed channels in the checkpoint of a detector."""

from collections.abc import Sequence

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torch import nn

from mmpsbn.analysis.collapse import ChannelWatch
from mmpsbn.analysis.report import Layer, describe_layers
from mmpsbn.checkpoints.matching import keep_class_layers, load_weights
from mmpsbn.checkpoints.reading import Checkpoint
from mmpsbn.config.errors import explain_config_errors
from mmpsbn.detectors.build import build_model, load_images
from mmpsbn.detectors.outputs import BatchRunner
from mmpsbn.errors import InputError

BATCH = 4
NOISE = 256  # The height and width of an image of noise.


def analyze(cfg: Config, checkpoint: Checkpoint, images: Sequence[str]) -> list[Layer]:
    """Find collapsed channels in a checkpoint.

    Args:
        cfg (Config): The config of the model.
        checkpoint (Checkpoint): The weights of the model, or those of its
            backbone. In the second case, only the backbone is analyzed. The
            model may have had other classes: layers with outputs for each
            class then have random weights. Norm layers of a mask head see the
            RoIs that these choose, and no other norm layer follows them.
        images (list[str]): Files of the images on which channels are judged.
            Without images, only the parameters are judged, and an image of
            noise shows which norm layers a ReLU follows.

    Returns:
        list[Layer]: The norm layers of the model.

    Raises:
        InputError: If the checkpoint does not fit, if the model has no norm
            layer, or if it cannot be run.
    """
    detector = model = build_model(cfg)
    weights = checkpoint.backbone
    if weights is None or not hasattr(detector, 'backbone'):
        load_weights(detector, keep_class_layers(detector, checkpoint)[0])
    else:
        backbone = detector.get_submodule('backbone')
        load_weights(backbone, weights)
        # The layers keep the names that they have in the detector.
        model = nn.ModuleDict(dict(backbone=backbone))
    watch = ChannelWatch(model)
    if not watch.layers:
        raise InputError(
            'the model of the config has no norm layer (BN, psBN, GN or '
            'MimicNorm), so no channel can collapse. Choose the config of a '
            'model with norm layers.'
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
                run(detector.get_submodule('backbone'))
    outputs = watch.outputs
    if not images:
        outputs = {
            name: seen._replace(dead=torch.zeros_like(seen.dead))
            for name, seen in outputs.items()
        }
    return describe_layers(watch.layers, outputs)


def _noise(detector: nn.Module) -> dict:
    """Return a batch with one image of noise from the data preprocessor."""
    pixels = torch.randint(
        256, (3, NOISE, NOISE), generator=torch.Generator().manual_seed(0)
    )
    shape = (NOISE, NOISE)
    sample = DetDataSample(
        metainfo=dict(
            img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0), img_id=0
        )
    )
    return detector.get_submodule('data_preprocessor')(
        dict(inputs=[pixels.byte()], data_samples=[sample]), False
    )
