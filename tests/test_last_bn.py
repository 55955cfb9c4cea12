"""MimicNorm's last BN: on linear layers, convs and dense heads."""

import pytest
import torch
from helpers import CONFIGS, build, demo_config, stock
from mmdet.models.dense_heads import RetinaHead
from mmdet.models.roi_heads import Shared2FCBBoxHead
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn
from torch.nn import functional as F

from mmpsbn import models
from mmpsbn.compare import replace_norm
from mmpsbn.config import read_config
from mmpsbn.convert.stock_config import stock_model
from mmpsbn.errors import InputError
from mmpsbn.layers import LastBNConv2d, LastBNLinear
from mmpsbn.models import SCORE_LAYERS, LastBNRPNHead, add_last_bn
from mmpsbn.registry import MODELS

DEMO = CONFIGS / 'demo'


def randomized(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer.double()


def stock_bn(layer, momentum=0.1):
    bn = nn.BatchNorm1d(layer.weight.shape[0], momentum=momentum).double()
    with torch.no_grad():
        bn.weight.copy_(layer.gain)
        bn.bias.copy_(layer.bias)
    return bn


def double(*shape):
    return torch.randn(*shape, dtype=torch.double)


@pytest.mark.parametrize('affine', [True, False])
def test_starts_again_after_the_meta_device(affine):
    layer = LastBNLinear(4, 3, affine=affine, gain=2, device='meta')
    layer.to_empty(device='cpu')
    for value in (*layer.parameters(), *layer.buffers()):
        value.data.fill_(torch.nan)
    layer.reset_parameters()
    assert layer.running_mean.tolist() == [0] * 3
    assert layer.running_var.tolist() == [1] * 3
    assert layer.weight.isfinite().all()
    assert not affine or layer.gain.tolist() == [2] * 3


def detector(name):
    register_all_modules()
    cfg = Config.fromfile(DEMO / f'{name}_r18-half_fpn_mimicnorm_digits.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    return model


def train_step(model, batch=2, boxes=None):
    inputs = demo_mm_inputs(
        batch, [[3, 96, 96]] * batch, num_classes=10, num_items=boxes
    )
    data = model.data_preprocessor(inputs, True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    return loss


def test_linear_is_bn_of_its_logits():
    layer = randomized(LastBNLinear(5, 3, momentum=0.2))
    bn = stock_bn(layer, momentum=0.2)
    for _ in range(2):
        x = double(8, 5)
        torch.testing.assert_close(layer(x), bn(F.linear(x, layer.weight)))
    layer.eval(), bn.eval()
    torch.testing.assert_close(layer(x), bn(F.linear(x, layer.weight)))


def test_conv_shares_one_set_of_statistics_between_levels():
    layer = randomized(LastBNConv2d(4, 6, 3, padding=1))
    bn = stock_bn(layer)
    levels = [double(2, 4, size, size) * size for size in (8, 4, 1)]
    raw = [F.conv2d(x, layer.weight, padding=1) for x in levels]
    expected = bn(torch.cat([y.flatten(2) for y in raw], 2))
    outputs = layer.normalize([layer(x) for x in levels])
    assert [y.shape for y in outputs] == [y.shape for y in raw]
    torch.testing.assert_close(torch.cat([y.flatten(2) for y in outputs], 2), expected)
    torch.testing.assert_close(layer.running_var, bn.running_var)


def test_gradients():
    layer = randomized(LastBNLinear(3, 2))
    assert torch.autograd.gradcheck(
        lambda x, w, g, b: torch.func.functional_call(
            layer, dict(weight=w, gain=g, bias=b), x
        ),
        [double(4, 3).requires_grad_(), *layer.parameters()],
    )


@pytest.mark.parametrize('rows', [0, 1])
def test_too_few_rois_for_statistics(rows):
    layer = randomized(LastBNLinear(5, 3))
    layer(double(8, 5))
    before = layer.running_mean.clone(), layer.running_var.clone()
    x = double(rows, 5).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert torch.equal(y, layer.eval()(x))
    assert torch.equal(layer.running_mean, before[0])
    assert torch.equal(layer.running_var, before[1])


def test_affine_is_an_option():
    layer = LastBNLinear(5, 3, affine=False).double()
    assert layer.bias is None and layer.gain is None
    y = layer(double(100, 5))
    torch.testing.assert_close(
        y.std(0, correction=0).mean().item(), 1.0, rtol=1e-3, atol=0
    )
    assert set(layer.state_dict()) == {'weight', 'running_mean', 'running_var'}


def test_a_roi_head_takes_it_by_config():
    with DefaultScope.overwrite_default_scope('mmdet'):
        head = Shared2FCBBoxHead(
            num_classes=7,
            in_channels=4,
            fc_out_channels=16,
            cls_predictor_cfg=dict(type='LastBNLinear', gain=0.5),
        )
    head.init_weights()
    assert isinstance(head.fc_cls, LastBNLinear)
    assert head.fc_cls.weight.shape == (8, 16)
    # The head's own initialization of W and b, and none of the gain.
    assert head.fc_cls.weight.std() < 0.02 and not head.fc_cls.bias.any()
    assert head.fc_cls.gain.tolist() == [0.5] * 8


# The heads of the table

FASTER = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco'
RETINA = 'retinanet/retinanet_r50_fpn_1x_coco'
HEADS = {
    'ATSSHead': ('atss/atss_r50_fpn_1x_coco', {}),
    'FCOSHead': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', {}),
    'GFLHead': ('gfl/gfl_r50_fpn_1x_coco', {}),
    'PAAHead': ('paa/paa_r50_fpn_1x_coco', {}),
    'RPNHead': (FASTER, dict(num_convs=2)),
    'RetinaHead': (RETINA, {}),
    'RetinaSepBNHead': (RETINA, dict(num_ins=5, norm_cfg=dict(type='BN'))),
    'VFNetHead': ('vfnet/vfnet_r50_fpn_1x_coco', {}),
}


def test_every_head_of_the_table_is_tested():
    names = {name for name in models.__all__ if name.startswith('LastBN')}
    assert names == {f'LastBN{name}' for name in HEADS}


def head_config(name, **changes):
    """The settings of a head in MMDetection's config, with fewer channels."""
    register_all_modules()
    file, own = HEADS[name]
    model = stock(file).model
    kind = 'rpn' if name == 'RPNHead' else 'bbox'
    head = model[f'{kind}_head']
    head.update(type=name, in_channels=32, feat_channels=32, **own)
    if name != 'RPNHead':
        head.update(num_classes=3, stacked_convs=1)
    train_cfg, test_cfg = model.get('train_cfg'), model.test_cfg
    head.train_cfg = train_cfg.rpn if kind == 'rpn' else train_cfg
    head.test_cfg = test_cfg.rpn if kind == 'rpn' else test_cfg
    head.update(changes)
    return head


@pytest.fixture(params=HEADS)
def head(request):
    """A head with a last BN, in training mode."""
    return build(head_config(request.param, type=f'LastBN{request.param}')).train()


def features(dtype=torch.float):
    return [torch.randn(2, 32, size, size, dtype=dtype) for size in (16, 8, 4, 2, 1)]


def score_layer(head):
    return head.get_submodule(head.score_layer)


def test_scores_of_a_head_are_bn_over_all_levels(head):
    stock_head = type(head).__bases__[-1]
    other = build(head_config(stock_head.__name__)).train()
    layer = score_layer(head)
    randomized(layer)
    state = head.state_dict()
    state[f'{head.score_layer}.bias'] = torch.zeros_like(layer.bias)
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not missing
    assert {key.rpartition('.')[2] for key in unexpected} == {
        'gain',
        'running_mean',
        'running_var',
    }
    head.double(), other.double()
    x = features(torch.double)
    (raw, *expected), (scores, *others) = other(x), head(x)
    flat = torch.cat([y.transpose(0, 1).flatten(1) for y in raw], 1)
    mean, var = flat.mean(1), flat.var(1, correction=0)
    for level, y in zip(scores, raw):
        normalized = (y - per_channel(mean)) / per_channel((var + layer.eps).sqrt())
        expected_level = normalized * per_channel(layer.gain) + per_channel(layer.bias)
        torch.testing.assert_close(level, expected_level)
    torch.testing.assert_close(others, expected)
    torch.testing.assert_close(layer.running_mean, 0.1 * mean)


def per_channel(value):
    return value.view(-1, 1, 1)


def test_the_prior_of_focal_loss_is_that_of_the_head(head):
    prior = 0.5 if isinstance(head, LastBNRPNHead) else 0.01
    bias = score_layer(head).bias
    assert bias.sigmoid().tolist() == pytest.approx([prior] * len(bias))
    with torch.no_grad():
        found = torch.cat([s.flatten() for s in head(features())[0]]).sigmoid()
    # The logits have variance 1, so the mean is above the median.
    assert found.median().item() == pytest.approx(prior, rel=0.1)
    assert 0.95 * prior < found.mean().item() < 2 * prior


def test_a_head_trains_and_predicts(head):
    samples = demo_mm_inputs(2, [[3, 128, 128]] * 2, num_classes=3)['data_samples']
    for sample in samples:
        sample.set_metainfo(dict(pad_shape=(128, 128)))
        if isinstance(head, LastBNRPNHead):
            sample.gt_instances.labels.zero_()
    optimizer = torch.optim.SGD(head.parameters(), lr=1e-3)
    losses = head.loss(features(), samples)
    sum(sum(x) if isinstance(x, list) else x for x in losses.values()).backward()
    optimizer.step()
    assert score_layer(head).gain.grad.abs().sum() > 0
    assert all(p.isfinite().all() for p in head.parameters())
    copy = build(head_config(type(head).__bases__[-1].__name__, type=type(head)))
    copy.load_state_dict(head.state_dict())
    x = features()
    for one, other in zip(predictions(head, x, samples), predictions(copy, x, samples)):
        assert len(one) and torch.equal(one.scores, other.scores)


@torch.no_grad()
def predictions(head, x, samples):
    head.test_cfg.score_thr = 0
    return head.eval().predict(x, samples)


@pytest.fixture
def own_head():
    """A user's head; the table and the registries forget it after the test."""
    tables = (
        SCORE_LAYERS,
        MODELS.module_dict,
        MODELS.parent.module_dict,
        MMDET_MODELS.module_dict,
    )
    before = [dict(table) for table in tables]

    @MMDET_MODELS.register_module()
    class OwnHead(RetinaHead):
        pass

    yield OwnHead
    for table, entries in zip(tables, before):
        table.clear()
        table.update(entries)


def test_one_line_adds_a_head(own_head):
    cfg = demo_config('retinanet', 'psbn')
    cfg.model.bbox_head.type = 'OwnHead'
    assert replace_norm(cfg, 'MimicNorm').model.bbox_head.type == 'OwnHead'
    add_last_bn(own_head, 'retina_cls')
    mimic = replace_norm(cfg, 'MimicNorm').model
    assert mimic.bbox_head.type == 'LastBNOwnHead'
    assert isinstance(build(mimic).bbox_head.retina_cls, LastBNConv2d)
    assert stock_model(mimic).bbox_head.type == 'OwnHead'


@pytest.mark.parametrize(
    'layer, words',
    [
        ('retina_clz', 'its layer retina_clz is missing'),
        ('cls_convs', 'its layer cls_convs is a ModuleList.*one torch.nn.Conv2d'),
        ('retina_reg', 'first outputs of its forward are not those of retina_reg'),
    ],
)
def test_a_layer_that_computes_no_scores_is_refused(layer, words, own_head):
    kind = add_last_bn(own_head, layer)
    with pytest.raises(InputError, match=words):
        kind(num_classes=3, in_channels=8, feat_channels=8)([torch.randn(1, 8, 4, 4)])


def test_a_score_layer_that_is_replaced_is_refused():
    """The cosine classifier of FCOS, which has no bias."""
    cfg = head_config('FCOSHead', type='LastBNFCOSHead')
    cfg.cls_predictor_cfg = dict(type='NormedConv2d')
    with pytest.raises(InputError, match='its layer conv_cls is a NormedConv2d'):
        build(cfg)


def test_an_unknown_type_names_those_that_exist_and_how_to_add_one(tmp_path):
    file = tmp_path / 'config.py'
    file.write_text("model = dict(bbox_head=dict(type='LastBNATSSHead'))")
    read_config(str(file))
    file.write_text("model = dict(bbox_head=dict(type='LastBNYOLOXHead'))")
    words = "'LastBNYOLOXHead' is not registered.*LastBNATSSHead, .*models.add_last_bn"
    with pytest.raises(InputError, match=words):
        read_config(str(file))


@pytest.mark.parametrize('name', ['faster-rcnn', 'retinanet'])
@pytest.mark.parametrize(
    'batch, boxes',
    [(1, [3]), (2, [0, 2]), (1, [0])],
    ids=['one_image', 'an_image_without_a_box', 'no_box'],
)
def test_small_batches_train(name, batch, boxes):
    model = detector(name)
    assert train_step(model, batch, boxes).isfinite()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)
