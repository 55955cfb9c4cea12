"""Mask R-CNN: trained with psBN and MimicNorm, and data without masks."""

import json
import shutil

import pytest
import torch
from helpers import FASTER, MIMIC_FASTER, ROOT, run
from mmengine.config import Config

from mmpsbn.checkpoints.reading import read_checkpoint
from mmpsbn.detectors.build import build_model

NORMS = {
    FASTER: dict(norm_cfg=dict(type='psBN')),
    MIMIC_FASTER: dict(
        conv_cfg=dict(type='MimicConv'), norm_cfg=dict(type='MimicNorm')
    ),
}


def mask_config(base, digits, out):
    """A config of Mask R-CNN, made from one of Faster R-CNN."""
    cfg = Config.fromfile(ROOT / base)
    model, extractor = (
        cfg.model,
        dict(
            cfg.model.roi_head.bbox_roi_extractor,
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
        ),
    )
    model.type = 'MaskRCNN'
    model.roi_head.mask_roi_extractor = extractor
    model.roi_head.mask_head = dict(
        type='FCNMaskHead',
        num_convs=1,
        in_channels=64,
        conv_out_channels=16,
        num_classes=10,
        loss_mask=dict(type='CrossEntropyLoss', use_mask=True),
        **NORMS[base],
    )
    model.train_cfg.rcnn.mask_size = 28
    model.test_cfg.rcnn.mask_thr_binary = 0.5
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{digits}/'
        for step in loader.dataset.pipeline:
            if step.type == 'LoadAnnotations':
                step.with_mask = True
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.metric = ['bbox', 'segm']
        evaluator.ann_file = f'{digits}/annotations/instances_val2017.json'
    cfg.dump(out)
    return out


@pytest.fixture
def masks(digits, tmp_path):
    """The digits, whose boxes are their masks."""
    out = tmp_path / 'digits'
    shutil.copytree(digits, out)
    for file in out.glob('annotations/*.json'):
        content = json.loads(file.read_text())
        for box in content['annotations']:
            x, y, width, height = box['bbox']
            box['segmentation'] = [
                [x, y, x + width, y, x + width, y + height, x, y + height]
            ]
        file.write_text(json.dumps(content))
    return out


@pytest.mark.slow
def test_mask_rcnn_trains_and_evaluates(masks, tmp_path):
    config = mask_config(MIMIC_FASTER, masks, tmp_path / 'mask.py')
    status, output = run('tools/train.py', config, '--work-dir', tmp_path)
    assert status == 0, output[-3000:]
    assert 'coco/segm_mAP' in output
    state = read_checkpoint(str(tmp_path / 'epoch_1.pth')).state_dict
    conv = state['roi_head.mask_head.convs.0.conv.weight']
    assert conv.isfinite().all()
    assert conv.mean((1, 2, 3)).abs().max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    'tool, file',
    [('train', 'instances_train2017.json'), ('test', 'instances_val2017.json')],
)
def test_data_without_masks_is_named(tool, file, refused, digits, tmp_path):
    config = mask_config(FASTER, digits, tmp_path / 'mask.py')
    arguments = []
    if tool == 'test':
        arguments = [tmp_path / 'a.pth']
        model = build_model(Config(), Config.fromfile(config).model)
        torch.save(dict(state_dict=model.state_dict()), *arguments)
    message = refused(
        f'tools/{tool}.py', config, *arguments, '--work-dir', tmp_path / 'work'
    )
    assert f'{file} has boxes without masks' in message
    assert "metric='bbox'" in message
