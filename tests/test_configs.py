"""Every config builds, trains a step and predicts."""

from collections import Counter

import pytest
import torch
from helpers import CONFIGS, use_few_rois
from mmcv.cnn import is_norm
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.utils import import_modules_from_strings

from mmpsbn.compare.placing import config_differences
from mmpsbn.hooks import LevelWatch, find_idle_norms
from mmpsbn.layers import NORM_TYPES, MimicNorm
from mmpsbn.layers.last_bn import LastBN
from mmpsbn.layers.post_shifted_bn import PostShift
from mmpsbn.registry import MODELS

# Part, kind and number of the norm layers. MMDetection freezes the first stage of
# ResNet-50.
R50 = {'backbone psBN': 42, 'backbone psBN frozen': 11}
YOLOV3 = {'backbone psBN': 52, 'neck psBN': 17, 'bbox_head psBN': 3}
OTHER_DETECTORS = {
    'yolov3_d53_psbn_273e_coco': YOLOV3,
    'yolov3_mobilenetv2_psbn_300e_coco': YOLOV3,
    'ssdlite_mobilenetv2-scratch_psbn_600e_coco': {
        'backbone psBN': 52,
        'neck psBN': 12,
        'bbox_head psBN': 12,
    },
    'centernet_r18_psbn_140e_coco': {'backbone psBN': 20, 'neck BatchNorm2d': 6},
    'fcos_r50_fpn_psbn_1x_coco': {**R50, 'bbox_head GroupNorm': 8},
    'atss_r50_fpn_psbn_1x_coco': {**R50, 'bbox_head GroupNorm': 8},
    'cascade-rcnn_r50_fpn_psbn_1x_coco': R50,
    'mask-rcnn_r50_fpn_psbn_1x_coco': R50,
}
FILES = sorted(
    path for path in CONFIGS.glob('*/*.py') if path.stem not in OTHER_DETECTORS
)
TYPES = dict(
    bn='BN', psbn='psBN', syncbn='SyncBN', pssyncbn='psSyncBN', mimicnorm='MimicNorm'
)


def norm_name(path):
    """psbn-all of faster-rcnn_r50_fpn_psbn-all_1x_coco."""
    return path.stem.split('_')[3]


def is_any_norm(module):
    return is_norm(module) or isinstance(module, MimicNorm)


def parts_with_norms(model):
    return {
        name.split('.')[0]
        for name, module in model.named_modules()
        if is_any_norm(module)
    }


def assert_weights_and_schedule(path, cfg):
    """What the name of a COCO config says of its start and its length."""
    init, name = cfg.model.backbone.init_cfg, path.stem
    if 'scratch' in name:
        assert init is None and cfg.model.backbone.frozen_stages == -1
        assert name.endswith('_6x_coco') and cfg.train_cfg.max_epochs == 73
        assert cfg.param_scheduler[-1].end == 73
    else:
        depth = cfg.model.backbone.depth
        assert init.type == 'Pretrained' and init.checkpoint == (
            f'checkpoints/resnet{depth}_mimicnorm.pth'
            if 'mimicnorm' in name
            else f'torchvision://resnet{depth}'
        )
        assert name.endswith('_1x_coco') and cfg.train_cfg.max_epochs == 12
    assert cfg.data_root == 'data/coco/'


def test_there_is_each_detector_with_each_norm():
    names = {path.stem for path in FILES}
    for detector in ('faster-rcnn', 'retinanet'):
        for norm in TYPES:
            for where in ('', '-all'):
                assert f'{detector}_r50_fpn_{norm}{where}_1x_coco' in names
        for norm in ('bn', 'mimicnorm'):
            for where in ('', '-all'):
                name = f'{detector}_r50-scratch_fpn_{norm}{where}_6x_coco'
                assert name in names


@pytest.mark.parametrize(
    'path', sorted(CONFIGS.glob('mimicnorm/*.py')), ids=lambda path: path.stem
)
def test_mimicnorm_and_its_baseline_differ_in_normalization_only(path):
    baseline = CONFIGS / 'psbn' / path.name.replace('mimicnorm', 'bn')
    cfgs = {file.parent.name: Config.fromfile(file) for file in (baseline, path)}
    for cfg in cfgs.values():
        cfg.pop('custom_imports', None)
        # Variables of the files.
        cfg.pop('mimic', None)
        # The weights of BN, and what tools/convert.py makes of them.
        if cfg.model.backbone.init_cfg:
            assert 'resnet50' in cfg.model.backbone.init_cfg.pop('checkpoint')
    heads = {
        'faster-rcnn': "model.rpn_head.type is 'LastBNRPNHead' instead of "
        "'RPNHead'; model.roi_head.bbox_head.cls_predictor_cfg is {'type': "
        "'LastBNLinear'} instead of the default.",
        'retinanet': "model.bbox_head.type is 'LastBNRetinaHead' instead of "
        "'RetinaHead'.",
        # Norm layers of each level apart are part of the normalization.
        'retinanet-all': "model.bbox_head.type is 'LastBNRetinaHead' instead "
        "of 'RetinaSepBNHead'; model.bbox_head.num_ins is the default instead "
        'of 5.',
    }
    (difference,) = config_differences(cfgs)
    detector = path.stem.split('_')[0]
    everywhere = '-all' * ('retinanet' in detector and '-all' in path.stem)
    assert difference.partition('norm layers: ')[2] == heads[detector + everywhere]


def loss_of_step(model, inputs):
    watch = LevelWatch(model)
    losses, _ = model.parse_losses(
        model(**model.data_preprocessor(inputs, True), mode='loss')
    )
    assert losses.isfinite() and watch.end() == []
    return losses


def assert_predicts(model, inputs):
    model.eval()
    with torch.no_grad():
        results = model(**model.data_preprocessor(inputs, False), mode='predict')
    assert len(results) == 2
    assert all(r.pred_instances.bboxes.shape[1] == 4 for r in results)


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_config_trains_a_step_and_predicts(path):
    register_all_modules()
    cfg = Config.fromfile(path)
    coco = path.stem.endswith('_coco')
    if coco:
        assert_weights_and_schedule(path, cfg)
    # The weights are not available.
    cfg.model.backbone.init_cfg = None
    use_few_rois(cfg)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
        model.init_weights()

        name, _, everywhere = norm_name(path).partition('-')
        expected = MODELS.get(TYPES[name])
        found = [m for m in model.modules() if is_any_norm(m)]
        assert {type(norm) for norm in found} == {expected}
        head = 'roi_head' if path.stem.startswith('faster') else 'bbox_head'
        if coco:
            parts = {'neck', head} if everywhere else set()
            assert parts_with_norms(model) == {'backbone'} | parts

        # As MMEngine's Runner does where there is one process.
        model = revert_sync_batchnorm(model)
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        model.train()
        find_last_bns = [m for m in model.modules() if isinstance(m, LastBN)]
        heads = 2 if path.stem.startswith('faster') else 1
        assert len(find_last_bns) == (heads if name == 'mimicnorm' else 0)
        if name.startswith('ps'):
            assert find_idle_norms(model, wrapper) == []
        classes = len(cfg.classes) if not coco else 80
        inputs = demo_mm_inputs(2, [[3, 64, 96], [3, 96, 64]], num_classes=classes)
        wrapper.backward(loss_of_step(model, inputs))
        if name.startswith('ps'):
            biases = [
                m.bias
                for m in model.modules()
                if isinstance(m, PostShift) and m.bias.requires_grad
            ]
            assert biases and all(bias.grad is not None for bias in biases)
        wrapper.step()
        assert_predicts(model, inputs)


@pytest.mark.parametrize('name', OTHER_DETECTORS)
def test_other_detectors_train_a_step_and_predict(name):
    register_all_modules()
    cfg = Config.fromfile(CONFIGS / 'psbn' / f'{name}.py')
    import_modules_from_strings(**cfg.custom_imports)
    assert name.startswith('ssdlite') or cfg.model.backbone.init_cfg.checkpoint
    cfg.model.backbone.init_cfg = None
    use_few_rois(cfg)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
        model.init_weights()
        model.train()
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        layers = Counter()
        for path, norm in model.named_modules():
            if isinstance(norm, NORM_TYPES):
                kind = 'psBN' if isinstance(norm, PostShift) else type(norm).__name__
                frozen = not (norm.training and norm.bias.requires_grad)
                layers[path.split('.')[0] + f' {kind}' + ' frozen' * frozen] += 1
        assert layers == OTHER_DETECTORS[name]
        assert find_idle_norms(model, wrapper) == []
        size = [3, 64, 64]
        with_mask = name.startswith('mask')
        inputs = demo_mm_inputs(2, [size] * 2, num_classes=80, with_mask=with_mask)
        wrapper.update_params(loss_of_step(model, inputs))
        assert_predicts(model, inputs)
