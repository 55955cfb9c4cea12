"""Detectors as ONNX files."""

import copy
import json
import math
import re
import shutil
import sys

import mmcv
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import (
    DETECTORS,
    FASTER,
    any_score,
    assert_folded,
    build,
    demo_config,
    docs_script,
    export,
    images,
    needs_onnx,
    needs_operators,
    trained_detector,
)
from mmcv.cnn import ConvModule, is_norm
from mmcv.ops import batched_nms
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg

from mmpsbn.detectors import Agreement
from mmpsbn.detectors.outputs import (
    BatchRunner,
    largest_difference,
    rounding_noise,
    same_detections,
)
from mmpsbn.errors import InputError
from mmpsbn.export import export_onnx, onnx_file
from mmpsbn.export.exportable import Exportable, extract_rois
from mmpsbn.export.onnx_file import fold, folded_stock, remove_padding
from mmpsbn.export.operators import nms, roi_align

SESSION = docs_script('InferenceSession')


def boxes(number):
    corners = torch.rand(number, 2) * 50
    return torch.cat([corners, corners + 5 + torch.rand(number, 2) * 30], 1)


def predicted(model, inputs):
    """What MMDetection's own post-processing gives, for each image."""
    samples = [
        DetDataSample(metainfo=dict(img_shape=tuple(inputs.shape[-2:]))) for _ in inputs
    ]
    with torch.no_grad():
        results = model.eval().predict(inputs, samples, rescale=False)
    return [result.pred_instances for result in results]


def assert_equal(dets, labels, expected):
    for det, label, truth in zip(dets, labels, expected):
        found = remove_padding(det, label)
        assert len(truth) == len(found['labels']) > 0
        for key, value in found.items():
            assert torch.equal(value, truth[key]), key


def test_nms_is_that_of_mmcv():
    box, score = boxes(200), torch.rand(2, 200)
    score[1, :150] = -1
    keep = nms(torch.stack([box, box]), score, 0.4)
    for mask, own in zip(keep, score):
        valid = (own >= 0).nonzero().squeeze(1)
        _, best = batched_nms(
            box[valid],
            own[valid],
            torch.zeros(len(valid)),
            dict(type='nms', iou_threshold=0.4),
        )
        assert set(mask.nonzero().flatten().tolist()) == set(valid[best].tolist())
    assert not nms(box[None], torch.full((1, 200), -1.0), 0.4).any()


@needs_operators
def test_operators_are_sound():
    torch.library.opcheck(nms, (boxes(9)[None], torch.rand(1, 9), 0.5))
    torch.library.opcheck(
        roi_align,
        (
            torch.randn(2, 3, 9, 9),
            boxes(4),
            torch.tensor([0, 1, 1, 0]),
            7,
            7,
            0.25,
            0,
            True,
        ),
    )


@pytest.mark.parametrize(
    'settings', [dict(sampling_ratio=0), dict(sampling_ratio=2), dict(aligned=False)]
)
def test_rois_are_extracted_on_their_levels(settings):
    extractor = SingleRoIExtractor(
        dict(type='RoIAlign', output_size=5, **settings), 4, [4, 8, 16], finest_scale=10
    )
    features = [torch.randn(2, 4, 96 // s, 96 // s) for s in (4, 8, 16)]
    rois = torch.cat([torch.randint(0, 2, (60, 1)), boxes(60)], 1)
    rois[:20, 3:] = rois[:20, 1:3] + 3
    torch.testing.assert_close(
        extract_rois(extractor, features, rois), extractor(features, rois)
    )


@pytest.mark.parametrize('differences', [(math.nan, 0.0), (0.0, math.nan)])
def test_nan_on_any_image_is_refused(differences):
    parts = [Agreement(1, difference, 5, 5) for difference in differences]
    with pytest.raises(InputError, match='differ'):
        Agreement.total(parts).require('the file')


@pytest.mark.parametrize('detector', DETECTORS)
@pytest.mark.parametrize(
    'change',
    [
        {},
        dict(nms=dict(type='nms', iou_threshold=0.6, class_agnostic=True)),
        dict(nms_pre=20, max_per_img=30),
        dict(min_bbox_size=12),
        dict(score_thr=0.1),
    ],
)
def test_detections_are_those_of_mmdetection(detector, change):
    cfg = any_score(demo_config(detector, 'psbn'))
    test_cfg = cfg.model.test_cfg
    for own in (test_cfg.get('rpn'), test_cfg.get('rcnn', test_cfg)):
        if own:
            own.update(change)
    model = build(cfg.model)
    if detector == 'retinanet':  # Scores beyond the threshold.
        torch.nn.init.normal_(model.bbox_head.retina_cls.weight, std=1)
    inputs = torch.randn(3, 3, 96, 128)
    exportable = Exportable(model)
    with torch.no_grad():
        dets, labels, *raw = exportable(inputs)
    assert len(raw) == len(exportable.names) - 2
    assert_equal(dets, labels, predicted(model, inputs))


def test_boxes_that_all_classes_share():
    cfg = any_score(demo_config('faster-rcnn', 'psbn'))
    cfg.model.roi_head.bbox_head.reg_class_agnostic = True
    model, inputs = build(cfg.model), torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        dets, labels, *_ = Exportable(model)(inputs)
    assert_equal(dets, labels, predicted(model, inputs))


def run_file(file, inputs):
    session = onnxruntime.InferenceSession(str(file))
    outputs = session.run(None, {'images': inputs.numpy()})
    return {
        output.name: torch.from_numpy(value)
        for output, value in zip(session.get_outputs(), outputs)
    }


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize(
    'detector, norm, sizes',
    [
        ('faster-rcnn', 'mimicnorm', [(1, 160, 160), (3, 224, 64)]),
        ('retinanet', 'psbn', [(1, 96, 128)]),
    ],
)
def test_a_trained_model_and_its_file(
    detector, norm, sizes, digits, tmp_path, monkeypatch
):
    cfg, file = any_score(demo_config(detector, norm)), tmp_path / 'a.onnx'
    model, dynamic = trained_detector(cfg), len(sizes) > 1
    exported = export(cfg, model, digits, file, sizes[0][1:], dynamic)
    assert exported.agreement.difference < 1e-5
    assert exported.agreement.same == exported.agreement.detections > 0
    assert exported.before['BatchNormalization'] > 0
    assert_folded(file)
    for number, *size in sizes:
        inputs = torch.randn(number, 3, *size)
        found = run_file(file, inputs)
        assert list(found) == ['dets', 'labels']
        for dets, labels, expected in zip(*found.values(), predicted(model, inputs)):
            same = same_detections(remove_padding(dets, labels), expected)
            # Rounding may turn a decision of NMS around.
            assert same > 0.95 * len(expected) > 0
    metadata = {
        prop.key: json.loads(prop.value) for prop in onnx.load(file).metadata_props
    }
    assert metadata['classes'] == ['a', 'b'] and metadata['bgr_to_rgb']
    np.testing.assert_allclose(metadata['mean'], [123.675, 116.28, 103.53])
    if dynamic:
        monkeypatch.chdir(tmp_path)
        assert_session_of_the_docs_runs(file, images(digits)[0])


def assert_session_of_the_docs_runs(file, image):
    """With a file at its place, in the working directory."""
    file.parent.joinpath('deploy').mkdir()
    shutil.copy(file, file.parent / 'deploy' / 'model.onnx')
    shutil.copy(image, file.parent / 'image.jpg')
    names = {}
    exec(compile(SESSION.code, str(SESSION), 'exec'), names)
    assert names['image'].shape == (800, 800, 3)
    assert names['dets'].shape[1:] == (len(names['labels'][0]), 5)
    assert names['labels'].max() >= 0


@pytest.mark.parametrize('size', [(480, 640), (200, 900), (900, 200)])
def test_the_session_of_the_docs_scales_as_the_configs_do(size):
    code = re.search(r'^(short.*\n)?scale = .*\n', SESSION.code, re.M)[0]
    names = dict(image=np.zeros((*size, 3)))
    exec(code, names)
    _, scale = mmcv.rescale_size(size[::-1], (1333, 800), return_scale=True)
    assert names['scale'] == pytest.approx(scale)


@pytest.mark.slow
@needs_onnx
def test_raw_outputs_of_one_shape(digits, tmp_path):
    cfg, file = demo_config('retinanet'), tmp_path / 'a.onnx'
    model = trained_detector(cfg).eval()
    export(cfg, model, digits, file, shape=(96, 128), raw=True)
    assert_folded(file)
    inputs = torch.randn(1, 3, 96, 128)
    found = run_file(file, inputs)
    with torch.no_grad():
        scores, deltas = model(inputs)
    assert list(found) == [
        f'{kind}_{level}' for kind in ('cls_score', 'bbox_pred') for level in range(4)
    ]
    for value, expected in zip(found.values(), (*scores, *deltas)):
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)
    assert not any(
        node.op_type == 'NonMaxSuppression' for node in onnx.load(file).graph.node
    )


@pytest.fixture
def no_export(monkeypatch):
    """For what is refused before the export, which takes seconds."""
    monkeypatch.setattr(onnx_file, '_program', None)


@pytest.mark.slow
@needs_onnx
def test_a_file_that_differs_is_not_kept(digits, tmp_path, monkeypatch):
    cfg = demo_config('retinanet', 'psbn')

    def other(model, stock):
        return {k: v * 1.01 for k, v in stock.state_dict().items()}

    monkeypatch.setattr(onnx_file, 'stock_state', other)
    with pytest.raises(InputError, match='the outputs of .* differ'):
        export(cfg, build(cfg.model), digits, tmp_path / 'a.onnx')
    assert not list(tmp_path.iterdir())


def test_boxes_with_equal_scores_may_change(digits):
    cfg = demo_config('faster-rcnn', 'psbn')
    cfg.model.test_cfg.rcnn.score_thr = 0
    model = build(cfg.model).eval()
    with torch.no_grad():  # The head sees no difference between RoIs.
        model.roi_head.bbox_head.shared_fcs[-1].weight.zero_()
        model.roi_head.bbox_head.shared_fcs[-1].bias.fill_(1)
    (file, *_) = images(digits)
    run = BatchRunner(onnx_file.prepare_image(cfg, file, model, (160, 160)))
    same = Agreement.with_model(
        run(model), run(model), run.detections(model), model, run
    )
    assert same.same == same.detections > 0 == same.unstable
    with rounding_noise(model):
        detections = run.detections(model)
    agreement = Agreement.with_model(run(model), run(model), detections, model, run)
    assert agreement.difference == 0 and agreement.same < 0.9 * agreement.detections
    assert agreement.unstable > 0 and 'equal scores' in str(agreement)
    agreement.require('a model')
    for other in (
        agreement._replace(unstable=0),
        agreement._replace(difference=1e-3),
        agreement._replace(same=0, unstable=agreement.detections // 2 - 1),
    ):
        with pytest.raises(InputError, match='detections are the same'):
            other.require('a model')


@pytest.mark.parametrize(
    'scale, shape',
    [(300, (320, 320)), ((1333, 800), (800, 1344)), ((64, 96), (64, 96))],
)
def test_the_shape_is_that_of_the_test_images(scale, shape):
    cfg = demo_config('retinanet')
    (resize,) = (step for step in cfg.test_pipeline if step.type == 'Resize')
    resize.scale = scale
    cfg.test_dataloader.dataset.pipeline = cfg.test_pipeline
    assert onnx_file.input_shape(cfg) == shape


def test_images_are_resized_under_each_name(digits):
    cfg = demo_config('retinanet', 'psbn')
    model = build(cfg.model)
    (file, *_) = images(digits)

    def prepared(kind):
        own = copy.deepcopy(cfg)
        for step in get_test_pipeline_cfg(own):
            if step.type == 'Resize':
                step.type = kind
        return onnx_file.prepare_image(own, file, model, (64, 96))['inputs']

    whole = prepared('Resize')
    assert whole.shape[2:] == (64, 96)
    for kind in ('mmdet.Resize', 'FixScaleResize'):
        assert prepared(kind).equal(whole)
    with pytest.raises(InputError, match="no step of type 'Resize'"):
        prepared('Pad')


def convs_like(**settings):
    return lambda model: model.backbone.update(conv_cfg=dict(**settings))


def apart(model):
    model.bbox_head.update(
        type='RetinaSepBNHead', num_ins=4, norm_cfg=dict(type='psBN')
    )


@pytest.mark.parametrize(
    'change, left',
    [
        (lambda model: None, 0),
        # Its convs are shared by four norm layers each.
        (apart, 16),
        # Its filters are standardized, and so would be what BN folds into them.
        (convs_like(type='ConvWS'), 20),
        (convs_like(type='Conv2dAdaptivePadding'), 0),
    ],
)
def test_bn_is_folded_where_that_changes_nothing(change, left):
    cfg = demo_config('retinanet', 'psbn')
    change(cfg.model)
    model = build(cfg.model).eval()
    for layer in filter(is_norm, model.modules()):
        torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
        torch.nn.init.normal_(layer.running_mean, std=0.1)
        torch.nn.init.uniform_(layer.running_var, 0.5, 1.5)
    folded, inputs = folded_stock(cfg, model), torch.randn(1, 3, 96, 128)
    assert sum(map(is_norm, folded.modules())) == left
    with torch.no_grad():
        found, expected = (sum(map(list, m(inputs)), []) for m in (folded, model))
    assert largest_difference(found, expected) < 1e-5


def test_convs_after_which_the_norm_layer_does_not_come_next():
    model = torch.nn.Sequential(
        *(
            ConvModule(4, 4, 3, norm_cfg=dict(type='BN'), order=order)
            for order in (
                ('conv', 'act', 'norm'),
                ('norm', 'conv', 'act'),
                ('act', 'conv', 'norm'),
            )
        )
    )
    for layer in filter(is_norm, model.modules()):
        torch.nn.init.normal_(layer.running_mean)
    inputs = torch.randn(2, 4, 9, 9)
    expected = model.eval()(inputs)
    fold(model)
    torch.testing.assert_close(model(inputs), expected)
    assert list(map(is_norm, (m.bn for m in model))) == [True, True, False]


@needs_onnx
def test_what_the_exporter_cannot_follow(digits, tmp_path):
    cfg = demo_config('retinanet', 'psbn')
    model = build(cfg.model)

    class ByValue(type(model.bbox_head)):
        def forward(self, features):
            return super().forward(
                features if features[0].sum() > 0 else features[::-1]
            )

    model.bbox_head.__class__ = ByValue
    with pytest.raises(InputError, match='cannot follow this RetinaNet'):
        onnx_file._program(Exportable(model), (96, 96))


@needs_onnx
def test_other_post_processing_is_refused(digits, tmp_path, no_export):
    cfg = demo_config('retinanet', 'psbn')
    cfg.model.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(InputError, match="'type': 'soft_nms'"):
        export(cfg, build(cfg.model), digits, tmp_path / 'a.onnx')


@needs_onnx
@pytest.mark.parametrize(
    'change, words',
    [
        (lambda model: model.test_cfg.nms.update(max_num=5), "'max_num': 5"),
        (lambda model: model.test_cfg.pop('nms'), r'settings \{\}'),
        (
            lambda model: model.backbone.update(
                dcn=dict(type='DCNv2', deform_groups=1),
                depth=50,
                stage_with_dcn=(False, False, False, True),
            ),
            'layer4.0.conv2 is a ModulatedDeformConv2dPack of MMCV',
        ),
        (
            lambda model: model.bbox_head.update(
                type='ATSSHead',
                loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True),
            ),
            'ATSSHead cannot be exported: it has outputs other',
        ),
        (
            lambda model: model.bbox_head.anchor_generator.update(strides=[8, 16]),
            'fails on an image of 96 x 128 pixels: Assertion',
        ),
    ],
)
def test_what_cannot_be_exported_is_named(change, words, digits, tmp_path, no_export):
    cfg = demo_config('retinanet', 'psbn')
    change(cfg.model)
    with pytest.raises(InputError, match=words):
        export(cfg, build(cfg.model), digits, tmp_path / 'a.onnx', (96, 128))


@needs_onnx
def test_another_detector_is_refused(digits, tmp_path, no_export):
    cfg = demo_config('retinanet', 'psbn')
    head = cfg.model.bbox_head
    cfg.model = dict(
        type='FCOS',
        backbone=cfg.model.backbone,
        neck=cfg.model.neck,
        data_preprocessor=cfg.model.data_preprocessor,
        bbox_head=dict(
            type='FCOSHead',
            num_classes=10,
            in_channels=64,
            feat_channels=head.feat_channels,
            strides=[8, 16, 32, 64],
            regress_ranges=((-1, 64), (64, 128), (128, 256), (256, 1e8)),
        ),
        test_cfg=cfg.model.test_cfg,
    )
    with pytest.raises(InputError, match='FCOSHead cannot be exported'):
        export(cfg, build(cfg.model), digits, tmp_path / 'a.onnx')


@needs_onnx
@pytest.mark.parametrize(
    'change, words',
    [
        (dict(out='a.pth'), 'must end in .onnx'),
        (dict(out='there.onnx'), 'Add --force'),
        (dict(shape=('100', '160')), 'multiples of 32. Try --shape 96 160.'),
        (dict(checkpoint='missing.pth'), 'missing.pth does not exist'),
        (dict(checkpoint='other.pth'), 'does not fit the model'),
        (dict(images='nowhere'), 'nowhere cannot be read'),
    ],
)
def test_the_command_refuses(change, words, refused, digits, tmp_path):
    (tmp_path / 'there.onnx').touch()
    torch.save(dict(state_dict=dict(a=torch.zeros(1))), tmp_path / 'other.pth')
    given = dict(
        checkpoint='other.pth',
        out='a.onnx',
        shape=('96', '96'),
        images=digits / 'val2017',
    )
    given.update(change)
    message = refused(
        'tools/export_onnx.py',
        FASTER,
        tmp_path / given['checkpoint'],
        '--out',
        tmp_path / given['out'],
        '--shape',
        *given['shape'],
        '--images',
        given['images'],
        data=digits,
    )
    assert words in message
    assert not (tmp_path / 'a.onnx').exists()


def test_a_torch_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(torch, '__version__', '2.4.0+cpu')
    with pytest.raises(InputError, match='torch 2.4.* cannot write .* needs torch 2.5'):
        export_onnx(None, None, [], '')


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(InputError, match='requirements/onnx.txt'):
        export_onnx(None, None, [], '')
