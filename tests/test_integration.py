"""What MMCV, MMEngine and MMDetection do to norm layers, done to psBN."""

import logging

import pytest
import torch
from mmcv.cnn import ConvModule, build_norm_layer, fuse_conv_bn, is_norm
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.model import (constant_init, convert_sync_batchnorm,
                            revert_sync_batchnorm)
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from mmengine.runner import save_checkpoint
from test_psbn import randomize
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmpsbn.layers import (PSBatchNorm1d, PSBatchNorm2d, PSBatchNorm3d,
                           PSSyncBatchNorm)
from mmpsbn.registry import NORM_LAYERS

NAMES = dict(
    psBN=PSBatchNorm2d,
    psBN1d=PSBatchNorm1d,
    psBN2d=PSBatchNorm2d,
    psBN3d=PSBatchNorm3d,
    psSyncBN=PSSyncBatchNorm)
both = pytest.mark.parametrize('name', ['psBN', 'psSyncBN'])


def resnet(norm='psBN', **kwargs):
    return ResNet(
        18, base_channels=8, norm_cfg=dict(type=norm), norm_eval=False,
        **kwargs)


def norms(model):
    return [module for module in model.modules() if is_norm(module)]


def randomized(model):
    for norm in norms(model):
        randomize(norm)
    # ResNet.train() returns nothing.
    model.double().train(False)
    return model


def images():
    return torch.randn(2, 3, 64, 64, dtype=torch.double)


@pytest.mark.parametrize('scope', [None, 'mmengine', 'mmcv', 'mmdet'])
@pytest.mark.parametrize('prefix', ['', 'mmpsbn.'])
@pytest.mark.parametrize('name', NAMES)
def test_types_resolve_in_every_scope(scope, prefix, name):
    with DefaultScope.overwrite_default_scope(scope):
        built_name, layer = build_norm_layer(
            dict(type=prefix + name, alpha=0.2), 8, postfix=1)
    assert type(layer) is NAMES[name]
    assert built_name == 'bn1' and layer.alpha == 0.2
    for registry in (NORM_LAYERS, MMENGINE_MODELS, MMDET_MODELS):
        assert registry.get(prefix + name) is NAMES[name]


@both
def test_resnet_fits_bn_key_for_key(name):
    assert list(resnet(name).state_dict()) == list(resnet('BN').state_dict())


@both
def test_is_a_batch_norm_to_the_stack(name):
    _, layer = build_norm_layer(dict(type=name, requires_grad=False), 8)
    assert isinstance(layer, _BatchNorm) and is_norm(layer)
    assert not any(p.requires_grad for p in layer.parameters())


@both
def test_norm_eval_and_frozen_stages_reach_it(name):
    model = resnet(name, frozen_stages=1)
    model.train()
    assert not model.bn1.training and not model.bn1.beta.requires_grad
    assert model.layer2[0].bn1.training
    assert model.layer2[0].bn1.beta.requires_grad
    model.norm_eval = True
    model.train()
    assert not any(norm.training for norm in norms(model))


def test_norm_decay_mult_reaches_beta():
    layer = ConvModule(3, 4, 1, norm_cfg=dict(type='psBN'))
    wrapper = build_optim_wrapper(
        layer,
        dict(
            optimizer=dict(type='SGD', lr=1, weight_decay=0.1),
            paramwise_cfg=dict(norm_decay_mult=0)))
    decay = {
        id(group['params'][0]): group['weight_decay']
        for group in wrapper.param_groups
    }
    assert decay[id(layer.bn.beta)] == 0
    assert decay[id(layer.conv.weight)] == 0.1


@both
def test_init_weights_leaves_beta_0_and_the_shift_at_alpha(name):
    model = resnet(name, zero_init_residual=True)
    model.init_weights()
    for norm in norms(model):
        assert norm.beta.tolist() == [0] * norm.num_features
        torch.testing.assert_close(norm.bias,
                                   torch.full_like(norm.beta, 0.1))
    block = model.layer1[0]
    assert block.bn1.weight.tolist() == [1] * 8
    assert block.bn2.weight.tolist() == [0] * 8


@both
@pytest.mark.parametrize('initialize, beta', [
    (lambda norm: constant_init(norm, 0.5, bias=0.3), 0.3),
    (lambda norm: nn.init.constant_(norm.bias, 0.3), 0.3),
    (lambda norm: nn.init.zeros_(norm.bias), 0),
    (lambda norm: nn.init.ones_(norm.bias), 1),
    (lambda norm: norm.bias.data.zero_(), 0),
    (lambda norm: norm.bias.data.fill_(2), 2),
    (lambda norm: nn.init.uniform_(norm.bias, 3, 3.0001), 3),
    (lambda norm: nn.init.normal_(norm.bias, 4, 0.0001), 4),
],
                         ids=[
                             'constant_init', 'constant_', 'zeros_', 'ones_',
                             'data.zero_', 'data.fill_', 'uniform_', 'normal_'
                         ])
def test_initializers_set_beta(name, initialize, beta):
    norm = randomize(NAMES[name](4))
    initialize(norm)
    torch.testing.assert_close(
        norm.beta.data, torch.full((4, ), float(beta)), rtol=0, atol=1e-3)
    torch.testing.assert_close(norm.bias, norm.beta + 0.1)


@both
def test_other_writes_set_the_applied_bias(name):
    norm = randomize(NAMES[name](4))
    value = torch.randn(4)
    parameter = norm.beta
    with torch.no_grad():
        norm.bias.copy_(value)
        torch.testing.assert_close(norm.bias, value)
        norm.bias[1] = 7
        norm.bias.data[2] = 8
        assert norm.bias[1:3].tolist() == [7, 8]
        norm.bias.mul_(2)
        assert norm.bias[1:3].tolist() == [14, 16]
        bias = norm.bias
        bias -= 1
        assert norm.bias[1:3].tolist() == [13, 15]
    norm.bias.data = value
    torch.testing.assert_close(norm.bias, value)
    assert norm.beta is parameter
    norm.bias = nn.Parameter(value + 1)
    torch.testing.assert_close(norm.bias, value + 1)


@both
def test_gradient_and_requires_grad_of_the_bias_are_beta_s(name):
    norm = NAMES[name](4)
    norm(torch.randn(2, 4, 3, 3)).sum().backward()
    assert norm.bias.grad is norm.beta.grad
    norm.bias.requires_grad = False
    assert not norm.beta.requires_grad
    norm.bias.requires_grad_()
    assert norm.beta.requires_grad


def test_pretrained_bn_weights_give_the_same_features(tmp_path):
    bn = randomized(resnet('BN'))
    file = str(tmp_path / 'bn.pth')
    save_checkpoint(bn.state_dict(), file)
    psbn = resnet(init_cfg=dict(type='Pretrained', checkpoint=file)).double()
    psbn.init_weights()
    psbn.train(False)
    x = images()
    for one, other in zip(bn(x), psbn(x)):
        torch.testing.assert_close(one, other)


@both
def test_fuse_conv_bn_is_exact(name):
    model = randomized(resnet(name))
    x = images()
    expected = model(x)
    fused = fuse_conv_bn(model)
    assert not norms(fused)
    for one, other in zip(fused(x), expected):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@both
def test_revert_sync_batchnorm_leaves_it_alone(name, caplog):
    model = randomized(resnet(name))
    x = images()
    expected = model(x)
    with caplog.at_level(logging.WARNING):
        reverted = revert_sync_batchnorm(model)
    assert not caplog.records
    assert {type(norm) for norm in norms(reverted)} == {NAMES[name]}
    for one, other in zip(reverted(x), expected):
        assert torch.equal(one, other)


@both
@pytest.mark.parametrize('convert', [
    convert_sync_batchnorm, nn.SyncBatchNorm.convert_sync_batchnorm
], ids=['mmengine', 'torch'])
def test_convert_sync_batchnorm_says_to_use_pssyncbn(name, convert):
    with pytest.raises(TypeError, match=r"norm_cfg=dict\(type='psSyncBN'\)"):
        convert(resnet(name))
