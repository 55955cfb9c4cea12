"""Checkpoints from BN to MimicNorm, and from ours to stock ones."""

import resource
import sys

import pytest
import torch
from helpers import (
    CONFIGS,
    DETECTORS,
    MIMIC,
    ROOT,
    any_score,
    build,
    convert,
    demo_config,
    demo_file,
    images,
    norms,
    randomized,
    run,
    stock,
    trained_detector,
)
from mmcv.cnn import ConvModule
from mmdet.models.backbones import ResNet
from mmdet.models.dense_heads import RetinaSepBNHead
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from mmpsbn.checkpoints.matching import check_any_fits, check_compatible
from mmpsbn.checkpoints.reading import Checkpoint
from mmpsbn.compare import replace_norm
from mmpsbn.convert import convert_to_mimicnorm, convert_to_psbn, convert_to_stock
from mmpsbn.convert.stock_config import (
    difference,
    fused_model,
    mmdet_bases,
    stock_config,
    stock_model,
)
from mmpsbn.convert.to_mimicnorm import (
    ChannelStatistics,
    calibrate_last_bn,
    find_pairs,
    fold,
    listen_to,
    recalibrate,
)
from mmpsbn.convert.to_stock import stock_state
from mmpsbn.detectors.build import load_images
from mmpsbn.detectors.outputs import BatchRunner, distance, largest_difference
from mmpsbn.errors import InputError
from mmpsbn.layers import LastBNConv2d, MimicConv
from mmpsbn.layers.last_bn import LastBN


def mimic_config(detector):
    """The demo's, with MimicNorm in the head that RetinaNet's levels share."""
    cfg = demo_config(detector)
    if detector == 'retinanet':
        cfg.model.bbox_head.update(MIMIC)
    return cfg


def trained_bn(cfg):
    """A BN model whose norm layers are far from their initial values."""
    model = build(stock_model(cfg.model))
    for norm in norms(model):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias, std=0.3)
        torch.nn.init.normal_(norm.running_mean, std=0.3)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    model.eval()
    return model


def to_mimicnorm(cfg, model, digits, tmp_path):
    """What the conversion of a BN model gives, and its weights."""
    out = str(tmp_path / 'mimic.pth')
    converted = convert_to_mimicnorm(
        cfg, Checkpoint('bn.pth', model.state_dict()), images(digits), out
    )
    return converted, torch.load(out)['state_dict']


@pytest.mark.parametrize('detector', DETECTORS)
def test_all_but_centering_is_exact(detector, digits, tmp_path):
    cfg = mimic_config(detector)
    cfg.model.backbone.conv_cfg.center = False
    if detector == 'retinanet':
        cfg.model.bbox_head.conv_cfg.center = False
    converted, _ = to_mimicnorm(cfg, trained_bn(cfg), digits, tmp_path)
    assert converted.before < 1e-4 and converted.after < 1e-4


@pytest.mark.parametrize('detector', DETECTORS)
def test_calibration_brings_the_outputs_back(detector, digits, tmp_path):
    cfg = mimic_config(detector)
    bn = trained_bn(cfg)
    before = {k: v.clone() for k, v in bn.state_dict().items()}
    converted, state = to_mimicnorm(cfg, bn, digits, tmp_path)
    assert converted.after < 0.7 * converted.before
    assert all(map(torch.equal, before.values(), bn.state_dict().values()))
    model = build(cfg.model)
    check_compatible(model, Checkpoint('mimic.pth', state))
    model.load_state_dict(state)
    for last_bn in model.modules():
        if isinstance(last_bn, LastBN):
            torch.testing.assert_close(
                last_bn.gain.data.square(), last_bn.running_var + last_bn.eps
            )


def test_channel_means_are_restored_at_every_layer():
    """Where a conv is called once, and where once for each of two sizes."""

    class Levels(torch.nn.Module):
        def __init__(self, **kwargs):
            super().__init__()
            self.net = ResNet(18, base_channels=8, **kwargs)
            self.tower = ResNet(18, base_channels=8, in_channels=64, **kwargs)
            self.train(False)

        def forward(self, x):
            last = self.net(x)[-1]
            return [*self.tower(last), *self.tower(last[..., ::2, ::2])]

    source, target = Levels(), Levels(**MIMIC)
    randomized(source), target.double()
    x = torch.randn(2, 3, 160, 160, dtype=torch.double)

    def run(model):
        return model(x)

    fold(source, target)
    names = [pair.norm for pair in find_pairs(target)]
    assert len(names) == 2 * 20
    before = distance(run(target), run(source))
    recalibrate(source, target, run)
    assert distance(run(target), run(source)) < before
    means = []
    for model in (source, target):
        found = {name: ChannelStatistics() for name in names}
        with listen_to(model, names, lambda name, y: found[name].add(y)):
            run(model)
        means.append(found)
    for name in names:
        torch.testing.assert_close(
            means[1][name].mean, means[0][name].mean, rtol=1e-6, atol=1e-6
        )


class Twins(torch.nn.Module):
    """Two networks, of which only one is run, as a teacher and its student."""

    def __init__(self, make):
        super().__init__()
        self.teacher, self.student = make(), make()

    def forward(self, x):
        return [self.teacher(x)]


def test_layers_that_a_prediction_does_not_use_are_refused():
    x = torch.randn(2, 3, 8, 8)

    def run(model):
        return model(x)

    source, target = (
        Twins(lambda: ConvModule(3, 4, 3, **settings))
        for settings in (dict(norm_cfg=dict(type='BN')), MIMIC)
    )
    fold(source.eval(), target.eval())
    with pytest.raises(InputError, match=r'1 layers .*student\.bn.*that detector'):
        recalibrate(source, target, run)
    scores = Twins(lambda: LastBNConv2d(3, 4, 1))
    with pytest.raises(InputError, match=r'1 layers .*example student\)'):
        calibrate_last_bn(scores.eval(), run)


SOFT_TEACHER = 'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco'


def test_weights_of_a_backbone_need_a_model_with_one(digits):
    cfg = stock(SOFT_TEACHER)
    cfg.model.detector.backbone.update(MIMIC)
    weights = Checkpoint('resnet50.pth', ResNet(50).state_dict())
    with pytest.raises(InputError, match='SoftTeacher has no backbone of its own'):
        convert_to_mimicnorm(cfg, weights, images(digits), 'out.pth')


def test_fusing_leaves_norms_of_an_inner_backbone_in_place():
    norm = dict(type='BN', requires_grad=True)
    detector = stock(SOFT_TEACHER).model.detector
    detector.neck.norm_cfg = norm
    fused = fused_model(dict(detector=detector))['detector']
    assert fused.neck.norm_cfg is None and fused.backbone == detector.backbone
    assert detector.neck.norm_cfg == norm


def test_frozen_stages_are_folded_as_others():
    source = ResNet(18, base_channels=8)
    randomized(source)
    free, frozen = (
        ResNet(18, base_channels=8, frozen_stages=stages, **MIMIC).double()
        for stages in (-1, 2)
    )
    assert not frozen.layer2[0].conv1.weight.requires_grad
    for target in (free, frozen):
        fold(source, target)
    for one, other in zip(frozen.state_dict().values(), free.state_dict().values()):
        torch.testing.assert_close(one, other)


def test_channel_statistics():
    parts = [torch.randn(2, 3, 4, 5), torch.randn(1, 3, 7, 1)]
    found = ChannelStatistics()
    for part in parts:
        found.add(part)
    whole = torch.cat([p.permute(1, 0, 2, 3).flatten(1) for p in parts], 1)
    torch.testing.assert_close(found.mean.float(), whole.mean(1))
    torch.testing.assert_close(found.var.float(), whole.var(1, correction=0))


def test_convs_without_a_norm_layer_convert_both_ways():
    neck = dict(
        type='FPN',
        in_channels=[8, 16],
        out_channels=8,
        num_outs=2,
        conv_cfg=dict(type='MimicConv'),
    )
    stock_neck = stock_model(neck)
    assert 'norm_cfg' not in stock_neck
    source, target = build(stock_neck), build(neck)
    inputs = torch.rand(2, 8, 16, 16), torch.rand(2, 16, 8, 8)

    def run(model):
        return list(model(inputs))

    target.lateral_convs[0].conv.set_scale(2)
    fold(source, target)
    before = distance(run(target), run(source))
    recalibrate(source, target, run)
    assert distance(run(target), run(source)) < 0.5 * before
    target.lateral_convs[0].conv.set_scale(3)
    back = build(stock_neck)
    back.load_state_dict(stock_state(target, back))
    torch.testing.assert_close(run(back), run(target))


def test_a_conv_that_several_norm_layers_share_is_refused():
    head = RetinaSepBNHead(
        num_classes=3, in_channels=8, feat_channels=8, num_ins=2, **MIMIC
    )
    with pytest.raises(InputError, match='shares cls_convs.0.0.conv .*RetinaHead'):
        find_pairs(head)


def test_psbn_converts_too(digits, tmp_path):
    cfg = demo_config('retinanet')
    bn = trained_bn(cfg)
    psbn = build(demo_config('retinanet', 'psbn').model)
    psbn.load_state_dict(bn.state_dict())
    one, other = (to_mimicnorm(cfg, model, digits, tmp_path)[1] for model in (bn, psbn))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name])


def test_a_config_without_ours_is_refused(digits):
    path = str(CONFIGS / 'psbn' / 'retinanet_r50_fpn_bn_1x_coco.py')
    cfg, empty = Config.fromfile(path), Checkpoint('bn.pth', {})
    with pytest.raises(InputError, match='nothing to convert'):
        convert_to_stock(cfg, empty, images(digits), 'out.pth')
    with pytest.raises(InputError, match='no MimicNorm.*conv_cfg'):
        convert_to_mimicnorm(cfg, empty, images(digits), 'out.pth')
    with pytest.raises(InputError, match='no psBN.*norm_cfg'):
        convert_to_psbn(cfg, empty, 'out.pth')


def test_mimicnorm_folds_bn_with_the_eps_of_its_norm_cfg(digits, tmp_path):
    """YOLOX and EfficientNet have 1e-3, not 1e-5."""
    cfg = demo_config('retinanet')
    cfg.model.backbone.conv_cfg.center = False
    cfg.model.backbone.norm_cfg.eps = 0.1
    assert stock_model(cfg.model).backbone.norm_cfg == dict(
        type='BN', requires_grad=True, eps=0.1
    )
    converted, _ = to_mimicnorm(cfg, trained_bn(cfg), digits, tmp_path)
    assert converted.after < 1e-4


def test_psbn_becomes_bn_under_every_name():
    model = dict(neck=dict(dw_norm_cfg=dict(type='psBN', alpha=0.2, eps=1e-3)))
    assert stock_model(model) == dict(neck=dict(dw_norm_cfg=dict(type='BN', eps=1e-3)))


def test_a_last_bn_without_gain_is_refused(digits, tmp_path):
    cfg = demo_config('faster-rcnn')
    cfg.model.roi_head.bbox_head.cls_predictor_cfg.affine = False
    with pytest.raises(InputError, match='fc_cls.*affine=False'):
        to_mimicnorm(cfg, trained_bn(cfg), digits, tmp_path)


def test_the_wrong_kind_of_checkpoint_names_its_remedy():
    bn, mimic = ResNet(18, base_channels=8), ResNet(18, base_channels=8, **MIMIC)
    with pytest.raises(InputError, match='convert.py --to mimicnorm'):
        check_compatible(mimic, Checkpoint('bn.pth', bn.state_dict()))
    with pytest.raises(InputError, match='The checkpoint has MimicNorm, but'):
        check_compatible(bn, Checkpoint('mimic.pth', mimic.state_dict()))


def test_training_does_not_start_from_nan():
    model = torch.nn.Linear(2, 2)
    check_any_fits(model, Checkpoint('a.pth', model.state_dict()))
    torch.nn.init.constant_(model.bias, float('nan'))
    with pytest.raises(InputError, match=r'1 tensors .*a\.pth contain NaN .*bias'):
        check_any_fits(model, Checkpoint('a.pth', model.state_dict()))


# To a stock model


def to_stock(cfg, model, digits, out, **options):
    content = dict(
        state_dict=model.state_dict(),
        meta=dict(dataset_meta=dict(classes=('a', 'b')), cfg='mmpsbn'),
    )
    return convert_to_stock(
        cfg, Checkpoint('trained.pth', content), images(digits), str(out), **options
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    'detector, norm, fused',
    [
        ('faster-rcnn', 'psbn', False),
        ('faster-rcnn', 'mimicnorm', False),
        ('retinanet', 'psbn', True),
        ('retinanet', 'mimicnorm', False),
        ('retinanet', 'mimicnorm', True),
    ],
)
def test_a_trained_model_becomes_stock(detector, norm, fused, digits, tmp_path):
    _path, out = demo_file(detector, norm), tmp_path / 'stock.pth'
    cfg = mimic_config(detector) if norm == 'mimicnorm' else demo_config(detector, norm)
    proof = to_stock(cfg, trained_detector(cfg), digits, out, fused=fused)
    assert proof.difference < 1e-5 and proof.same == proof.detections
    text = (tmp_path / 'stock.py').read_text()
    content = CheckpointLoader.load_checkpoint(str(out), map_location='cpu')
    assert 'mmpsbn' not in text + content['meta']['cfg']
    assert text.startswith("_base_ = ['mmdet::_base_/models/")
    assert content['meta']['dataset_meta'] == dict(classes=('a', 'b'))
    assert 'optimizer' not in content
    assert {p.name for p in tmp_path.iterdir()} == {'stock.py', 'stock.pth'}
    heads = [
        key
        for key in content['state_dict']
        if 'running_var' in key and not key.startswith('backbone')
    ]
    assert bool(heads) == (detector == 'retinanet' and not fused)


@pytest.mark.parametrize(
    'file',
    [
        'mimicnorm/faster-rcnn_r50_fpn_mimicnorm-all_1x_coco.py',
        'mimicnorm/retinanet_r50-scratch_fpn_mimicnorm-all_6x_coco.py',
        'psbn/faster-rcnn_r50_fpn_pssyncbn-all_1x_coco.py',
        'psbn/retinanet_r101_fpn_psbn_1x_coco.py',
    ],
)
def test_the_stock_config_is_short_and_complete(file, tmp_path):
    path = str(CONFIGS / file)
    cfg = Config.fromfile(path)
    model = stock_model(cfg.model)
    text = stock_config(cfg, model)
    assert 0 < len(text.splitlines()) < 60 and 'mmpsbn' not in text
    (tmp_path / 'stock.py').write_text(text)
    stock = Config.fromfile(tmp_path / 'stock.py')
    assert stock.model.backbone.norm_cfg.type in ('BN', 'SyncBN')
    assert 'conv_cfg' not in stock.model.backbone
    for key in cfg:
        if key not in ('model', 'custom_imports', 'mimic'):
            assert stock[key] == cfg[key], key
    register_all_modules()
    stock.model.backbone.init_cfg = None
    for built in (stock.model, model):
        built['backbone']['init_cfg'] = None
    one, other = build(stock.model), build(model)
    assert list(one.state_dict()) == list(other.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    'file, fused, key',
    [
        (
            'mimicnorm/retinanet_r50-scratch_fpn_mimicnorm-all_6x_coco.py',
            False,
            'bbox_head.cls_convs.3.bn.running_var',
        ),
        (
            'psbn/faster-rcnn_r50_fpn_psbn-all_1x_coco.py',
            True,
            'roi_head.bbox_head.shared_convs.3.conv.bias',
        ),
        # Five norm layers behind each conv of the head.
        (
            'psbn/retinanet_r50_fpn_psbn-all_1x_coco.py',
            True,
            'bbox_head.cls_convs.4.3.bn.running_var',
        ),
    ],
)
def test_norms_of_neck_and_heads_become_stock(file, fused, key, digits, tmp_path):
    path = str(CONFIGS / file)
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(depth=18, init_cfg=None)
    cfg.model.neck.in_channels = [64, 128, 256, 512]
    cfg.test_dataloader.dataset.pipeline[1].scale = (160, 160)
    if 'rpn' in cfg.model.test_cfg:
        cfg.model.test_cfg.rpn.max_per_img = 20
        cfg.model.train_cfg.rcnn.sampler.num = 16
    register_all_modules()
    proof = to_stock(
        cfg, trained_detector(cfg), digits, tmp_path / 's.pth', fused=fused
    )
    assert proof.difference < 1e-5
    state = torch.load(tmp_path / 's.pth')['state_dict']
    assert key in state
    assert ('neck.fpn_convs.0.bn.running_var' in state) != fused


def mmdet_config(tmp_path, base, changes=''):
    """One of MMDetection's configs with psBN, and its file."""
    register_all_modules()
    path = tmp_path / 'config.py'
    path.write_text(
        f"_base_ = 'mmdet::{base}'\n"
        "model = dict(backbone=dict(norm_cfg=dict(type='psBN'), "
        f'init_cfg=None))\n{changes}'
    )
    cfg = Config.fromfile(path)
    for step in cfg.test_dataloader.dataset.pipeline:
        if 'scale' in step:
            step['scale'] = (160, 160)
    return cfg, str(path)


R18 = """
model['backbone']['depth'] = 18
model['neck'] = dict(in_channels=[64, 128, 256, 512])
model['test_cfg'] = dict(
    rpn=dict(max_per_img=5), rcnn=dict(score_thr=0.005, max_per_img=5))
"""


def detector_with_head_of(name):
    """The demo's RetinaNet with the head of one of MMDetection's detectors."""
    cfg, other = demo_config('retinanet', 'psbn'), stock(name).model
    cfg.model.neck.num_outs = other.neck.num_outs
    head = other.bbox_head
    head.update(num_classes=10, in_channels=64, feat_channels=32, stacked_convs=1)
    for part in ('type', 'bbox_head', 'test_cfg'):
        cfg.model[part] = other[part]
    cfg.model.train_cfg = other.get('train_cfg')
    return any_score(cfg)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', ['atss/atss_r50_fpn_1x_coco', 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco']
)
def test_other_dense_heads_convert_both_ways(name, digits, tmp_path):
    cfg = replace_norm(detector_with_head_of(name), 'MimicNorm')
    model = trained_detector(cfg)
    proof = to_stock(cfg, model, digits, tmp_path / 'stock.pth', fused=True)
    assert proof.difference < 1e-5 and proof.same == proof.detections > 0
    cfg.model.backbone.conv_cfg.center = False
    bn = build(stock_model(cfg.model))
    converted, state = to_mimicnorm(cfg, bn, digits, tmp_path)
    assert converted.after < 1e-4
    assert sum(key.endswith('.gain') for key in state) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    'base, changes',
    [
        ('detr/detr_r18_8xb2-500e_coco.py', ''),
        ('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', R18),
        ('cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py', R18),
    ],
    ids=['DETR', 'Mask R-CNN', 'Cascade RPN'],
)
def test_other_detectors_become_stock(base, changes, digits, tmp_path):
    cfg, _path = mmdet_config(tmp_path, base, changes)
    proof = to_stock(cfg, build(cfg.model), digits, tmp_path / 's.pth')
    assert proof.difference < 1e-5
    assert proof.same == proof.detections > 0


@pytest.mark.slow
def test_fusing_reaches_norms_that_a_constructor_would_add(digits, tmp_path):
    """YOLOX's neck and head have BN unless norm_cfg is None."""
    cfg, _path = mmdet_config(
        tmp_path,
        'yolox/yolox_tiny_8xb8-300e_coco.py',
        "model['neck'] = model['bbox_head'] = "
        "dict(norm_cfg=dict(type='psBN', eps=0.001))",
    )
    proof = to_stock(cfg, build(cfg.model), digits, tmp_path / 's.pth', fused=True)
    assert proof.difference < 1e-5
    state = torch.load(tmp_path / 's.pth')['state_dict']
    assert not any(
        'running_var' in key for key in state if not key.startswith('backbone')
    )


@pytest.mark.slow
def test_fusing_leaves_gn_of_a_head_in_place(digits, tmp_path):
    cfg = demo_config('retinanet', 'psbn')
    cfg.model.neck.norm_cfg = dict(type='psBN')
    cfg.model.bbox_head.norm_cfg = dict(type='GN', num_groups=4)
    proof = to_stock(cfg, trained_detector(cfg), digits, tmp_path / 's.pth', fused=True)
    assert proof.difference < 1e-5
    state = torch.load(tmp_path / 's.pth')['state_dict']
    assert 'bbox_head.cls_convs.0.gn.weight' in state
    assert 'neck.fpn_convs.0.conv.bias' in state
    assert 'neck.fpn_convs.0.bn.running_var' not in state


def test_a_stock_config_keeps_what_is_not_of_mmpsbn(tmp_path):
    path = demo_file('retinanet', 'psbn')
    cfg = Config.fromfile(path)
    cfg.custom_imports.imports = ['mmpsbn', 'mmpsbn.layers', 'json.tool']
    cfg.custom_hooks = [
        dict(type='FilterCollapseHook'),
        dict(type='mmpsbn.NonFiniteHook'),
        dict(type='NumClassCheckHook'),
    ]
    (tmp_path / 'stock.py').write_text(stock_config(cfg, stock_model(cfg.model)))
    stock = Config.fromfile(tmp_path / 'stock.py')
    assert stock.custom_imports.imports == ['json.tool']
    assert stock.custom_hooks == [dict(type='NumClassCheckHook')]


def test_a_pipeline_that_needs_more_than_images_is_refused(digits, tmp_path):
    """As that of Fast R-CNN, which loads proposals."""
    cfg = demo_config('retinanet', 'psbn')
    cfg.test_dataloader.dataset.pipeline.insert(
        1, dict(type='LoadProposals', num_max_proposals=10)
    )
    with pytest.raises(InputError, match='cannot be used.*proposals'):
        to_stock(cfg, build(cfg.model), digits, tmp_path / 's.pth')


def test_annotations_of_a_panoptic_pipeline_are_not_loaded(digits):
    cfg = demo_config('retinanet', 'psbn')
    cfg.test_dataloader.dataset.pipeline.insert(1, dict(type='LoadPanopticAnnotations'))
    batch = load_images(cfg, images(digits)[:1], build(cfg.model))
    assert len(batch['inputs']) == 1


def test_outputs_of_a_semantic_head_are_compared():
    model = stock('panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco').model
    model.backbone.update(depth=18, base_channels=8, init_cfg=None)
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=32)
    model.rpn_head.update(in_channels=32, feat_channels=32)
    model.roi_head.bbox_roi_extractor.out_channels = 32
    model.roi_head.bbox_head.update(in_channels=32, fc_out_channels=8)
    model.roi_head.mask_roi_extractor.out_channels = 32
    model.roi_head.mask_head.update(in_channels=32, conv_out_channels=8)
    model.semantic_head.update(in_channels=32, inner_channels=32)
    model.test_cfg.rpn.max_per_img = 5
    model = build(model).eval()
    samples = [DetDataSample(metainfo=dict(img_shape=(64, 64)))]
    run = BatchRunner(dict(inputs=torch.randn(1, 3, 64, 64), data_samples=samples))
    expected = run(model)
    model.semantic_head.conv_logits.bias.data += 1
    assert largest_difference(run(model), expected) > 0


@pytest.mark.parametrize(
    'end, words',
    [
        ('kill -9 $$', r'signal 9 \(Killed\).*--number 1'),
        ('exit 3', 'exit status 3 and without a message'),
        ('echo "KeyError: x" >&2; exit 1', 'without mmpsbn: KeyError: x$'),
    ],
)
def test_a_proof_that_ends_early_says_how(end, words, digits, tmp_path, monkeypatch):
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\n{end}\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(python))
    cfg = demo_config('retinanet', 'psbn')
    with pytest.raises(InputError, match=words):
        to_stock(cfg, build(cfg.model), digits, tmp_path / 's.pth')
    assert [p.name for p in tmp_path.iterdir()] == ['python']


def test_outputs_that_are_not_finite_are_refused(digits, tmp_path):
    """NaN in one output of several, while the others compare as equal."""
    cfg = demo_config('retinanet', 'psbn')
    model = build(cfg.model)
    mimic = demo_config('retinanet')
    for value, words in (
        ('inf', 'NaN or infinite'),
        ('nan', r'tensors of the checkpoint .* \(for example bbox_head.retina_reg.wei'),
    ):
        with torch.no_grad():
            model.bbox_head.retina_reg.weight[0] = float(value)
        with pytest.raises(InputError, match=words):
            to_stock(cfg, model, digits, tmp_path / 's.pth')
        with pytest.raises(InputError, match=words):
            to_mimicnorm(mimic, model, digits, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_stock_model_that_differs_is_not_kept(digits, tmp_path, monkeypatch):
    cfg, _path = demo_config('retinanet'), demo_file('retinanet')
    monkeypatch.setattr(
        MimicConv, 'applied_weight', property(lambda conv: conv.weight * 1.01)
    )
    model = trained_detector(cfg)
    monkeypatch.setattr(
        model.backbone.conv1.__class__,
        'forward',
        lambda conv, x: conv._conv_forward(x, conv.weight, conv.bias),
    )
    with pytest.raises(InputError, match='the outputs of the stock model differ'):
        to_stock(cfg, model, digits, tmp_path / 'stock.pth')
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_from_bn_to_psbn_and_back(digits, tmp_path):
    cfg = demo_config('retinanet', 'psbn')
    bn = trained_bn(cfg).state_dict()
    convert_to_psbn(cfg, Checkpoint('bn.pth', bn), str(tmp_path / 'p.pth'))
    psbn = build(cfg.model)
    psbn.load_state_dict(torch.load(tmp_path / 'p.pth')['state_dict'])
    # As DistributedDataParallel's weights are, saved by hand.
    wrapped = torch.nn.Module()
    wrapped.module = psbn
    to_stock(cfg, wrapped, digits, tmp_path / 's.pth')
    state = torch.load(tmp_path / 's.pth')['state_dict']
    assert list(state) == list(bn)
    for key, value in bn.items():
        torch.testing.assert_close(state[key], value)


def test_a_full_disk_leaves_nothing(digits, tmp_path):
    cfg = demo_config('retinanet', 'psbn')
    model, limits = build(cfg.model), resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / 's.pth').write_text('an earlier file')
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(InputError, match='cannot be written'):
            to_stock(cfg, model, digits, tmp_path / 's.pth')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ['s.pth']
    assert (tmp_path / 's.pth').read_text() == 'an earlier file'


def test_difference_merges_to_the_whole():
    base = dict(a=dict(b=1, c=dict(d=2)), e=[1, 2], f=None, g=dict(h=1))
    full = dict(a=dict(b=1, c=dict(d=3)), e=[1], f=dict(i=1), g=dict(j=2))
    changed = difference(base, full)
    assert changed == dict(
        a=dict(c=dict(d=3)),
        e=[1],
        f=dict(i=1, _delete_=True),
        g=dict(j=2, _delete_=True),
    )
    assert Config._merge_a_into_b(changed, base) == full
    assert difference(full, full) == {}


def test_mmdet_bases_are_found_through_our_own():
    path = CONFIGS / 'psbn' / 'faster-rcnn_r50_fpn_psbn-all_1x_coco.py'
    assert mmdet_bases(str(path)) == [
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
    ]


# The command


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
    """A ResNet-18 of half width, as a classifier's checkpoint would be."""
    file = tmp_path_factory.mktemp('weights') / 'resnet.pth'
    state = ResNet(18, base_channels=32).state_dict()
    torch.save({**state, 'fc.weight': torch.zeros(5, 256)}, file)
    return file


CONFIG = 'configs/demo/faster-rcnn_r18-half_fpn_mimicnorm_digits.py'


@pytest.mark.slow
def test_the_command_makes_pretrained_weights(backbone, digits, tmp_path):
    out = tmp_path / 'new' / 'mimic.pth'
    command = [
        CONFIG,
        backbone,
        '--to',
        'mimicnorm',
        '--out',
        out,
        '--images',
        digits / 'val2017',
        '--number',
        4,
    ]
    done = convert(*command, fresh=True)
    assert done.returncode == 0, done.stderr
    assert 'on 4 images' in done.stdout
    model = ResNet(
        18,
        base_channels=32,
        **MIMIC,
        init_cfg=dict(type='Pretrained', checkpoint=str(out)),
    )
    model.init_weights()
    state = torch.load(out, weights_only=True)['state_dict']
    assert all(torch.equal(model.state_dict()[k], state[k]) for k in state)
    again = convert(*command)
    assert again.returncode == 1 and '--force' in again.stderr
    assert convert(*command, '--force').returncode == 0


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(images='nowhere'), 'nowhere cannot be read'),
        (dict(images='configs'), 'configs has no image'),
        (dict(checkpoint='missing.pth'), 'missing.pth does not exist'),
        (
            dict(config='configs/demo/retinanet_r18-half_fpn_psbn_digits.py'),
            'no MimicNorm',
        ),
        (dict(number='0'), 'at least one image'),
        (dict(out='mimic.ckpt'), 'must end in .pth'),
        (dict(to='bn'), 'does not fit the model'),
    ],
)
def test_the_command_refuses(change, words, refused, backbone, digits, tmp_path):
    given = dict(
        config=CONFIG,
        checkpoint=backbone,
        to='mimicnorm',
        out='mimic.pth',
        number='2',
        images=digits / 'val2017',
    )
    given.update(change)
    message = refused(
        'tools/convert.py',
        given['config'],
        given['checkpoint'],
        '--to',
        given['to'],
        '--out',
        tmp_path / given['out'],
        '--images',
        given['images'],
        '--number',
        given['number'],
        data=digits,
    )
    assert words in message
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_real_run_with_averaged_weights(digits, tmp_path):
    config = tmp_path / 'ema.py'
    config.write_text(
        f'_base_ = {str(ROOT / CONFIG)!r}\n'
        "custom_hooks = [dict(type='EMAHook', momentum=0.3)]\n"
    )
    status, output = run('tools/train.py', config, '--work-dir', tmp_path, data=digits)
    assert status == 0, output[-3000:]
    trained, out = tmp_path / 'epoch_1.pth', tmp_path / 'stock.pth'
    done = convert(
        config,
        trained,
        '--to',
        'bn',
        '--out',
        out,
        '--images',
        digits / 'val2017',
        '--number',
        2,
    )
    assert done.returncode == 0, done.stderr
    assert 'averaged (EMA) weights' in done.stdout
    content = CheckpointLoader.load_checkpoint(str(trained), 'cpu')
    stock = torch.load(out)['state_dict']
    name = 'roi_head.bbox_head.fc_reg.weight'
    assert torch.equal(stock[name], content['state_dict'][name])
    last = content['ema_state_dict'][f'module.{name}']
    assert not torch.equal(stock[name], last)
