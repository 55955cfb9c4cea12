"""MimicNorm's last BN: on linear layers, convs and dense heads."""

import pytest
import torch
from helpers import CONFIGS
from mmdet.models.roi_heads import Shared2FCBBoxHead
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn
from torch.nn import functional as F

from mmpsbn.layers import LastBNConv2d, LastBNLinear
from mmpsbn.models import LastBNRetinaHead, LastBNRPNHead
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


def test_the_prior_of_focal_loss_survives_initialization():
    model = detector('retinanet')
    head = model.bbox_head
    assert isinstance(head, LastBNRetinaHead)
    with torch.no_grad():
        features = model.extract_feat(torch.randn(2, 3, 160, 160))
        scores = torch.cat([s.flatten() for s in head(features)[0]]).sigmoid()
    assert 0.008 < scores.median() < 0.0125
    assert 0.008 < scores.mean() < 0.02


def test_rpn():
    model = detector('faster-rcnn')
    assert isinstance(model.rpn_head, LastBNRPNHead)
    assert train_step(model).isfinite()
    assert model.rpn_head.rpn_cls.gain.grad.abs().sum() > 0


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
