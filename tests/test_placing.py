"""Normalizations in MMDetection's own configs, whatever these leave unsaid."""

from collections import Counter

import pytest
from helpers import demo_config, stock

from mmpsbn.compare import NORMALIZATIONS, replace_norm
from mmpsbn.compare.placing import FIXED, config_differences, describe_placing
from mmpsbn.detectors.build import build_model
from mmpsbn.errors import InputError
from mmpsbn.layers import NORM_TYPES
from mmpsbn.layers.last_bn import LastBN
from mmpsbn.models.last_bn_heads import heads_without_last_bn

YOLO = 'yolo/yolov3_d53_8xb8-320-273e_coco'
HRNET = 'hrnet/faster-rcnn_hrnetv2p-w18-1x_coco'
DOUBLE_HEAD = 'double_heads/dh-faster-rcnn_r50_fpn_1x_coco'
FCOS = 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco'

CASCADE = 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco'
C4 = 'faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco'


def layers(cfg, norm):
    """Count the norm layers by class, and by whether they are trained."""
    model = build_model(cfg, replace_norm(cfg, norm).model).train()
    return Counter(
        (type(layer).__name__, layer.training)
        for layer in model.modules()
        if isinstance(layer, NORM_TYPES)
    )


@pytest.mark.parametrize('name, number', [(YOLO, 72), (HRNET, 305)])
def test_norm_layers_that_a_constructor_freezes_are_trained(name, number):
    cfg = stock(name)
    assert layers(cfg, 'psBN') == {('PSBatchNorm2d', True): number}
    assert layers(cfg, 'GN') == {('GroupNorm', True): number}


@pytest.mark.parametrize('norm', FIXED)
def test_statistics_are_fixed_in_the_backbone_alone(norm):
    assert layers(stock(YOLO), norm) == {
        ('BatchNorm2d', False): 52,
        ('BatchNorm2d', True): 20,
    }


def test_norm_layers_by_default_are_replaced():
    # The residual blocks of this head say BN in their own code.
    assert layers(stock(DOUBLE_HEAD), 'GN') == {
        ('GroupNorm', True): 42 + 12,
        ('GroupNorm', False): 11,  # Of frozen_stages=1.
        ('BatchNorm2d', True): 3,
    }


def test_the_settings_of_bn_stay_those_of_its_pretrained_weights():
    cfg = stock('efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco')
    for norm in ('BN', 'psBN'):
        norm_cfg = replace_norm(cfg, norm).model.backbone.norm_cfg
        assert (norm_cfg.eps, norm_cfg.momentum) == (1e-3, 0.01)
    mimic = replace_norm(cfg, 'MimicNorm')
    assert mimic.model.backbone.norm_cfg == dict(type='MimicNorm', eps=1e-3)
    # What the weights of BN are converted from.
    assert replace_norm(mimic, 'BN').model.backbone.norm_cfg.eps == 1e-3


def test_gn_next_to_bn_stays_and_is_remarked():
    cfg = stock(FCOS)
    for norm in ('BN', 'MimicNorm'):
        assert layers(cfg, norm)['GroupNorm', True] == 8
    assert (
        'same in every run: 8 in bbox_head (GroupNorm)' in describe_placing(cfg, {})[0]
    )
    whole = stock('gn/mask-rcnn_r50_fpn_gn-all_2x_coco')
    assert not any('GroupNorm' in kind for kind, _ in layers(whole, 'BN'))
    # GN itself is as the config has it.
    norm_cfg = replace_norm(whole, 'GN').model.backbone.norm_cfg
    assert norm_cfg.num_groups == 32


@pytest.mark.parametrize(
    'name, heads',
    [
        ('tood/tood_r50_fpn_1x_coco', 'bbox_head (TOODHead)'),
        (YOLO, 'bbox_head (YOLOV3Head)'),
        ('detr/detr_r50_8xb2-150e_coco', 'bbox_head (DETRHead)'),
        ('ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco', 'bbox_head (SSDHead)'),
        (
            'centernet/centernet_r18_8xb16-crop512-140e_coco',
            'bbox_head (CenterNetHead)',
        ),
        (DOUBLE_HEAD, 'roi_head.bbox_head (DoubleConvFCBBoxHead)'),
    ],
)
def test_mimicnorm_without_its_last_bn_is_remarked(name, heads):
    cfg = stock(name)
    remarks = describe_placing(cfg, {'MimicNorm': replace_norm(cfg, 'MimicNorm')})
    assert any(f'has no last BN in {heads}, so' in remark for remark in remarks)


@pytest.mark.parametrize(
    'name, last_bns',
    [
        (FCOS, ['LastBNConv2d']),
        ('atss/atss_r50_fpn_1x_coco', ['LastBNConv2d']),
        (CASCADE, ['LastBNConv2d', *['LastBNLinear'] * 3]),
        ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco', ['LastBNConv2d', 'LastBNLinear']),
    ],
)
def test_every_head_that_scores_classes_has_a_last_bn(name, last_bns):
    model = build_model(replace_norm(stock(name), 'MimicNorm'))
    found = [type(x).__name__ for x in model.modules() if isinstance(x, LastBN)]
    assert found == last_bns
    assert heads_without_last_bn(model) == []


@pytest.mark.parametrize('name', ['tood/tood_r50_fpn_1x_coco', YOLO])
def test_bn_with_last_bn_needs_a_head_that_can_have_one(name):
    with pytest.raises(
        InputError,
        match='none of its heads can have a last BN.*add_last_bn.*out of --norms',
    ):
        replace_norm(stock(name), 'BN+LastBN')


def test_a_part_of_mimicnorm_that_is_missing_is_remarked():
    cfg = stock(DOUBLE_HEAD)  # The RPN can have a last BN.
    cfgs = {norm: replace_norm(cfg, norm) for norm in ('BN+LastBN', 'MimicBody')}
    found = [
        remark for remark in describe_placing(cfg, cfgs) if 'has no last BN' in remark
    ]
    assert len(found) == 1 and found[0].startswith(
        'BN+LastBN has no last BN in roi_head.bbox_head (DoubleConvFCBBoxHead), so'
    )


def test_norm_layers_that_cannot_be_replaced_are_remarked():
    cfg = stock('centernet/centernet_r18_8xb16-crop512-140e_coco')
    assert '6 in neck (BatchNorm2d)' in describe_placing(cfg, {})[0]


HEADS = {
    'faster-rcnn': "model.rpn_head.type is 'LastBNRPNHead' instead of "
    "'RPNHead'; model.roi_head.bbox_head.cls_predictor_cfg is {'type': "
    "'LastBNLinear'} instead of the default",
    'retinanet': "model.bbox_head.type is 'LastBNRetinaHead' instead of 'RetinaHead'",
}


@pytest.mark.parametrize('detector', HEADS)
def test_norms_differ_in_nothing_else_or_it_is_remarked(detector):
    cfg = demo_config(detector, 'psbn')
    cfgs = {norm: replace_norm(cfg, norm) for norm in NORMALIZATIONS}
    changes = {
        **dict.fromkeys(FIXED, 'model.backbone.norm_eval is True instead of False'),
        **dict.fromkeys(('BN+LastBN', 'MimicNorm'), HEADS[detector]),
    }
    assert describe_placing(cfg, cfgs) == [
        f'The config of {norm} differs from that of BN in more than its norm '
        f'layers: {change}.'
        for norm, change in changes.items()
    ]


@pytest.mark.parametrize('trained, own', [(True, 'norm_eval'), (False, 'FrozenBN')])
def test_statistics_that_the_config_fixes_are_remarked(trained, own):
    cfg = stock('retinanet/retinanet_r50_fpn_1x_coco')
    cfg.model.backbone.norm_cfg.requires_grad = trained
    cfgs = {norm: replace_norm(cfg, norm) for norm in ('BN', 'psBN')}
    (remark,) = describe_placing(cfg, cfgs)
    assert f'no run has its normalization. Add {own} to --norms' in remark
    cfgs[own] = replace_norm(cfg, own)
    (remark,) = describe_placing(cfg, cfgs)
    assert remark.startswith(f'The config of {own} differs from that of BN')
    del cfgs[own]
    for other in (dict(norm_cfg=dict(type='GN', num_groups=32)), dict(norm_eval=False)):
        cfg.model.backbone.update(other)
        assert not any('no run has' in one for one in describe_placing(cfg, cfgs))
        cfg.model.backbone.norm_cfg = dict(type='BN')


def test_every_difference_of_configs_is_remarked():
    cfgs = {
        norm: replace_norm(demo_config('retinanet', 'psbn'), norm)
        for norm in ('MimicBody', 'BN', 'psBN')
    }
    assert config_differences(cfgs) == []
    del cfgs['BN'].optim_wrapper['clip_grad']
    cfgs['psBN'].train_dataloader.dataset.pipeline[2].keep_ratio = False
    cfgs['psBN'].model.neck.conv_cfg = dict(type='ConvWS')
    bn, psbn = config_differences(cfgs)
    assert bn.endswith(
        'optim_wrapper.clip_grad is the default instead of '
        "{'max_norm': 10, 'norm_type': 2}."
    )
    assert 'pipeline.2.keep_ratio is False instead of True' in psbn
    assert "model.neck.conv_cfg is {'type': 'ConvWS'} instead of" in psbn


def test_mimicnorm_leaves_parts_without_conv_cfg():
    cfg = stock(C4)
    mimic = replace_norm(cfg, 'MimicNorm')
    remark, fixed = describe_placing(cfg, {'MimicNorm': mimic})
    assert remark == (
        'MimicNorm has BN in 10 in roi_head.shared_head (BatchNorm2d), '
        'because these parts take no conv_cfg.'
    )
    assert 'Add FrozenBN to --norms' in fixed


def test_a_detector_that_mimicnorm_does_not_fit():
    # A convolution of CSPNeXt's ignores conv_cfg.
    cfg = stock('rtmdet/rtmdet_tiny_8xb32-300e_coco')
    with pytest.raises(InputError, match='Leave MimicNorm out of --norms'):
        describe_placing(cfg, {'MimicNorm': replace_norm(cfg, 'MimicNorm')})


@pytest.mark.parametrize('norm', NORMALIZATIONS)
def test_a_transformer_has_no_place(norm):
    with pytest.raises(InputError, match='SwinTransformer .* no batch norm'):
        replace_norm(stock('swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco'), norm)


def test_a_norm_cfg_that_builds_no_layer_is_no_place():
    cfg = stock('swin/retinanet_swin-t-p4-w7_fpn_1x_coco')
    cfg.model.bbox_head.update(
        type='RetinaSepBNHead',
        num_ins=5,
        stacked_convs=0,
        feat_channels=256,
        norm_cfg=dict(type='BN'),
    )
    with pytest.raises(InputError, match='no norm layer to replace'):
        describe_placing(cfg, {})


def test_batch_norm_next_to_a_transformer_is_replaced():
    cfg = stock('swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco')
    cfg.model.neck.norm_cfg = dict(type='BN')
    found = layers(cfg, 'psBN')
    assert found['PSBatchNorm2d', True] == 8 and found['LayerNorm', True] > 0
    for norm in FIXED:
        with pytest.raises(InputError, match=f'no part .* Leave {norm} out'):
            replace_norm(cfg, norm)


@pytest.mark.parametrize(
    'name, groups',
    [(HRNET, 2), ('efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco', 4)],
)
def test_groups_divide_the_channels_of_every_layer(name, groups):
    cfg = replace_norm(stock(name), 'GN')
    assert cfg.model.backbone.norm_cfg.num_groups == groups
    build_model(cfg)
