"""The detectors of the study, and what happens to them between rounds."""

import copy
from functools import cache
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import nn

from mmpsbn.analysis.collapse import norm_layers
from mmpsbn.compare import replace_norm
from mmpsbn.config.reading import read_config
from mmpsbn.detectors import build_model

from .tasks import CLASSES

DEMO = Path(__file__).resolve().parents[2] / 'configs' / 'demo'
CONFIGS = {
    name: str(DEMO / f'{name}_r18-half_fpn_psbn_digits.py')
    for name in ('faster-rcnn', 'retinanet')
}
WIDTH = 32  # The channels of FPN and heads.
SMALL = {
    'model.backbone.base_channels': 16,
    'model.neck.in_channels': [16, 32, 64, 128],
    'model.neck.out_channels': WIDTH,
}
# Half the widths of configs/demo, and fewer proposals.
OPTIONS = {
    'faster-rcnn': {
        **SMALL,
        'model.rpn_head.in_channels': WIDTH,
        'model.rpn_head.feat_channels': WIDTH,
        'model.roi_head.bbox_roi_extractor.out_channels': WIDTH,
        'model.roi_head.bbox_head.in_channels': WIDTH,
        'model.roi_head.bbox_head.fc_out_channels': 128,
        'model.roi_head.bbox_head.num_classes': CLASSES,
        'model.train_cfg.rpn_proposal.nms_pre': 100,
        'model.train_cfg.rpn_proposal.max_per_img': 50,
        'model.train_cfg.rcnn.sampler.num': 32,
        'model.test_cfg.rpn.nms_pre': 100,
        'model.test_cfg.rpn.max_per_img': 30,
    },
    'retinanet': {
        **SMALL,
        'model.bbox_head.in_channels': WIDTH,
        'model.bbox_head.feat_channels': WIDTH,
        'model.bbox_head.num_classes': CLASSES,
    },
}
BN = dict(type='BN')
# Norm layers in FPN and heads, too.
EVERYWHERE = {
    'faster-rcnn': {
        'model.neck.norm_cfg': BN,
        'model.roi_head.bbox_head.type': 'Shared4Conv1FCBBoxHead',
        'model.roi_head.bbox_head.conv_out_channels': WIDTH,
        'model.roi_head.bbox_head.norm_cfg': BN,
    },
    'retinanet': {
        'model.neck.norm_cfg': BN,
        'model.bbox_head.type': 'RetinaSepBNHead',
        'model.bbox_head.num_ins': 4,
        'model.bbox_head.norm_cfg': BN,
    },
}
CLASS_LAYERS = {
    'faster-rcnn': ('roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg'),
    'retinanet': ('bbox_head.retina_cls',),
}
"""The layers that have outputs for each class."""


@cache
def config_of(detector: str, placement: str, method: str) -> Config:
    """Read the demo's config of a detector, and make it smaller.

    Args:
        detector (str): ``faster-rcnn`` or ``retinanet``.
        placement (str): ``backbone`` or ``everywhere``.
        method (str): The normalization. Methods other than psBN and norm_eval
            have BN.
    """
    MMLogger.get_instance('mmengine', log_level='ERROR')
    options = dict(OPTIONS[detector])
    if placement == 'everywhere':
        options |= EVERYWHERE[detector]
    cfg = copy.deepcopy(_demo_config(detector))
    cfg.merge_from_dict(options)
    return replace_norm(cfg, method if method in ('psBN', 'norm_eval') else 'BN')


@cache
def _demo_config(detector: str) -> Config:
    return read_config(CONFIGS[detector])


def new_detector(detector: str, placement: str, method: str) -> nn.Module:
    """Build a detector with random weights."""
    model = build_model(config_of(detector, placement, method))
    model.init_weights()
    return model


def set_training(model: nn.Module, method: str) -> None:
    """Set a detector to training mode. FrozenBN keeps all norm layers fixed."""
    model.train()
    if method == 'FrozenBN':
        for _, norm in norm_layers(model):
            norm.eval().requires_grad_(False)


@torch.no_grad()
def reset_class_layers(model: nn.Module, fresh: nn.Module, detector: str) -> None:
    """Reset the layers that have outputs for each class.

    MMDetection does so if the classes of a checkpoint differ in number.

    Args:
        model (nn.Module): The detector.
        fresh (nn.Module): A detector with random weights.
        detector (str): ``faster-rcnn`` or ``retinanet``.
    """
    for name in CLASS_LAYERS[detector]:
        model.get_submodule(name).load_state_dict(
            fresh.get_submodule(name).state_dict()
        )
