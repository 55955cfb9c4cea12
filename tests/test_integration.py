"""What MMCV, MMEngine and MMDetection do to norm layers, done to psBN."""

import logging

import pytest
import torch
from helpers import norms, randomized
from mmcv.cnn import ConvModule, build_norm_layer, fuse_conv_bn, is_norm
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.model import constant_init, convert_sync_batchnorm, revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from mmengine.runner import load_state_dict, save_checkpoint
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmpsbn.layers import PSBatchNorm1d, PSBatchNorm2d, PSBatchNorm3d, PSSyncBatchNorm
from mmpsbn.registry import MODELS

NAMES = dict(
    psBN=PSBatchNorm2d,
    psBN1d=PSBatchNorm1d,
    psBN2d=PSBatchNorm2d,
    psBN3d=PSBatchNorm3d,
    psSyncBN=PSSyncBatchNorm,
)
both = pytest.mark.parametrize('name', ['psBN', 'psSyncBN'])


def resnet(norm='psBN', **kwargs):
    return ResNet(
        18, base_channels=8, norm_cfg=dict(type=norm), norm_eval=False, **kwargs
    )


def images():
    return torch.randn(2, 3, 64, 64, dtype=torch.double)


@pytest.mark.parametrize('scope', [None, 'mmengine', 'mmcv', 'mmdet'])
@pytest.mark.parametrize('prefix', ['', 'mmpsbn.'])
@pytest.mark.parametrize('name', NAMES)
def test_types_resolve_in_every_scope(scope, prefix, name):
    with DefaultScope.overwrite_default_scope(scope):
        built_name, layer = build_norm_layer(
            dict(type=prefix + name, alpha=0.2), 8, postfix=1
        )
    assert type(layer) is NAMES[name]
    assert built_name == 'bn1' and layer.alpha == 0.2
    for registry in (MODELS, MMENGINE_MODELS, MMDET_MODELS):
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
    assert not model.bn1.training and not model.bn1.bias.requires_grad
    assert model.layer2[0].bn1.training
    assert model.layer2[0].bn1.bias.requires_grad
    model.norm_eval = True
    model.train()
    assert not any(norm.training for norm in norms(model))


def test_norm_decay_mult_reaches_the_bias():
    layer = ConvModule(3, 4, 1, norm_cfg=dict(type='psBN'))
    wrapper = build_optim_wrapper(
        layer,
        dict(
            optimizer=dict(type='SGD', lr=1, weight_decay=0.1),
            paramwise_cfg=dict(norm_decay_mult=0),
        ),
    )
    decay = {
        id(group['params'][0]): group['weight_decay'] for group in wrapper.param_groups
    }
    assert decay[id(layer.bn.bias)] == 0
    assert decay[id(layer.conv.weight)] == 0.1


@both
def test_init_weights_leaves_the_bias_at_alpha(name):
    model = resnet(name, zero_init_residual=True)
    model.init_weights()
    for norm in norms(model):
        torch.testing.assert_close(norm.bias, torch.full_like(norm.bias, 0.1))
    block = model.layer1[0]
    assert block.bn1.weight.tolist() == [1] * 8
    assert block.bn2.weight.tolist() == [0] * 8


@both
@pytest.mark.parametrize('layer', ['_BatchNorm', 'BatchNorm2d'])
def test_init_cfg_reaches_it_by_the_names_of_bn(name, layer):
    if (name, layer) == ('psSyncBN', 'BatchNorm2d'):
        pytest.skip('SyncBN is no BatchNorm2d either')
    init_cfg = dict(type='Constant', layer=layer, val=0.5, bias=0.3)
    model = resnet(name, init_cfg=init_cfg)
    model.init_weights()
    for norm in norms(model):
        assert norm.weight.tolist() == [0.5] * norm.num_features
        torch.testing.assert_close(norm.bias, torch.full_like(norm.bias, 0.3))


@both
def test_initializers_set_the_bias(name):
    norm = NAMES[name](4)
    for initialize in (
        lambda: constant_init(norm, 0.5, bias=0.3),
        lambda: nn.init.constant_(norm.bias, 0.3),
        lambda: norm.bias.data.fill_(0.3),
    ):
        norm.reset_parameters()
        initialize()
        torch.testing.assert_close(norm.train().bias.data, torch.full((4,), 0.3))


@both
@pytest.mark.parametrize(
    'start',
    [
        lambda model: model.apply(
            lambda m: constant_init(m, 1) if is_norm(m) else None
        ),
        lambda model: model.train(),
        lambda model: model.eval(),
    ],
    ids=['apply', 'train', 'eval'],
)
def test_bn_s_start_becomes_that_of_psbn(name, start):
    """ConvModule sets the bias of its new norm layer to 0."""
    model = ConvModule(3, 4, 1, norm_cfg=dict(type=name))
    start(model)
    torch.testing.assert_close(model.bn.bias.data, torch.full((4,), 0.1))


@both
def test_a_zero_that_was_loaded_or_trained_stays(name):
    loaded, trained = NAMES[name](4), NAMES[name](4)
    loaded.load_state_dict(nn.BatchNorm2d(4).state_dict())
    trained(torch.randn(2, 4, 3, 3))
    nn.init.zeros_(trained.bias)
    for norm in (loaded, trained):
        norm.apply(lambda m: None).train().eval()
        assert norm.bias.tolist() == [0] * 4


@both
@pytest.mark.parametrize(
    'state', [{}, {'1.bn.bias': torch.zeros(8)}], ids=['no bias', 'another width']
)
def test_a_partial_checkpoint_loads_the_layers_that_it_has(name, state):
    """As `load_from` with the weights of another detector."""
    model = nn.Sequential(
        *(ConvModule(3, 3, 1, norm_cfg=dict(type=name)) for _ in range(2))
    )
    load_state_dict(model, {'0.bn.bias': torch.zeros(3), **state})
    model.train()
    assert model[0].bn.bias.tolist() == [0] * 3
    torch.testing.assert_close(model[1].bn.bias.data, torch.full((3,), 0.1))


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
@pytest.mark.parametrize(
    'convert',
    [convert_sync_batchnorm, nn.SyncBatchNorm.convert_sync_batchnorm],
    ids=['mmengine', 'torch'],
)
def test_convert_sync_batchnorm_keeps_the_function(name, convert):
    model = randomized(resnet(name))
    x = images()
    expected = model(x)
    converted = convert(model)
    converted.train(False)
    assert not any(isinstance(m, NAMES[name]) for m in converted.modules())
    for one, other in zip(converted(x), expected):
        torch.testing.assert_close(one, other)
