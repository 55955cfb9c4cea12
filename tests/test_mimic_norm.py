"""MimicNorm's body: what MimicConv computes, and where its scalars are."""

import copy
import pickle
import weakref
from collections import OrderedDict
from functools import cache

import pytest
import torch
from helpers import (
    MIMIC,
    block_ends,
    mimic_convs,
    needs_fused,
    needs_setup_context,
    published,
)
from mmcv.cnn import ConvModule
from mmdet.models.backbones import (
    CSPDarknet,
    CSPNeXt,
    Darknet,
    DetectoRS_ResNet,
    EfficientNet,
    MobileNetV2,
    Res2Net,
    ResNet,
    ResNeXt,
)
from mmdet.models.backbones.resnet import BasicBlock
from mmdet.models.layers import CSPLayer
from mmdet.models.necks import FPN
from mmengine.model import ExponentialMovingAverage, revert_sync_batchnorm
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mmpsbn.analysis import saved_bytes
from mmpsbn.errors import InputError
from mmpsbn.layers import BRANCH_ENDS, BranchEnd, MimicConv, MimicNorm, mimic_norm


def resnet(depth=18, **kwargs):
    return ResNet(depth, **{**MIMIC, 'base_channels': 8, **kwargs})


def trained(model):
    """The model in training mode; ResNet.train() returns nothing."""
    model.train()
    return model


def centered(weight):
    return weight - weight.mean((1, 2, 3), keepdim=True)


def assert_centered(weight):
    mean = weight.detach().mean((1, 2, 3))
    torch.testing.assert_close(
        mean, torch.zeros_like(mean), rtol=0, atol=4 * torch.finfo(weight.dtype).eps
    )


def uncentered(conv):
    with torch.no_grad():
        conv.weight.add_(torch.randn(conv.out_channels, 1, 1, 1))
    return conv


def images(*shape):
    return torch.randn(*shape or (2, 3, 64, 64), dtype=torch.double)


# What it computes


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('scale', [None, 0.3])
def test_is_a_conv_with_a_centered_weight(training, scale):
    conv = MimicConv(3, 4, 3, stride=2, padding=1, dtype=torch.double)
    nn.init.normal_(conv.bias)
    if scale is not None:
        conv.set_scale(scale)
    x = images()
    expected = F.conv2d(
        x, (scale or 1) * centered(conv.weight.detach()), conv.bias, 2, 1
    )
    torch.testing.assert_close(conv.train(training)(x), expected, rtol=0, atol=1e-12)


def test_depthwise_and_grouped_convs_are_not_centered():
    for groups in (2, 4):
        conv = MimicConv(4, 4, 3, groups=groups).double()
        weight = uncentered(conv).weight.detach().clone()
        x = images(2, 4, 8, 8)
        torch.testing.assert_close(
            conv(x), F.conv2d(x, weight, conv.bias, groups=groups)
        )
        assert torch.equal(conv.weight, weight)


# An image with fewer values than the weight, and one with more.
@pytest.mark.parametrize('side', (5, 6))
def test_gradients_are_those_of_the_formula(side):
    conv = MimicConv(2, 3, 3).double()
    conv.set_scale(0.7)
    x = images(1, 2, side, side).requires_grad_()
    assert (x.numel() < conv.weight.numel()) == (side == 5)
    conv(x).square().sum().backward()
    weight, scale, bias = (
        p.detach().clone().requires_grad_()
        for p in (conv.weight, conv.scale, conv.bias)
    )
    z = x.detach().clone().requires_grad_()
    F.conv2d(z, scale * weight, bias).square().sum().backward()
    for one, other in (
        (conv.weight, weight),
        (conv.scale, scale),
        (conv.bias, bias),
        (x, z),
    ):
        torch.testing.assert_close(one.grad, other.grad)


def test_gradients_of_each_sample():
    conv = MimicConv(2, 3, 3).double()
    conv.set_scale(0.7)
    parameters = {name: p.detach() for name, p in conv.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(conv, parameters, x).square().sum()

    x = images(4, 2, 5, 5)
    of_samples = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    of_batch = torch.func.grad(loss)(parameters, x)
    for name, gradient in of_batch.items():
        torch.testing.assert_close(of_samples[name].sum(0), gradient)


@pytest.mark.parametrize('training', [True, False])
def test_torch_fx_traces_it_like_a_conv(training):
    conv = MimicConv(2, 3, 3)
    conv.set_scale(0.7)
    traced = torch.fx.symbolic_trace(nn.Sequential(conv).train(training))
    assert [node.op for node in traced.graph.nodes] == [
        'placeholder',
        'call_module',
        'output',
    ]


def test_follows_sgd_that_centers_after_every_step():
    conv = MimicConv(3, 4, 3, dtype=torch.double)
    conv.set_scale(1.2)
    weight, bias, scale = (
        nn.Parameter(p.detach().clone()) for p in (conv.weight, conv.bias, conv.scale)
    )
    sgd = dict(lr=0.05, momentum=0.9, weight_decay=0.01)
    ours = torch.optim.SGD(conv.parameters(), **sgd)
    plain = torch.optim.SGD([weight, bias, scale], **sgd)
    for _ in range(20):
        x = images(2, 3, 8, 8) + 1
        conv(x).relu().mean().backward()
        F.conv2d(x, scale * weight, bias).relu().mean().backward()
        for optimizer in (ours, plain):
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            weight.copy_(centered(weight))
        for one, other in (
            (conv.state_dict()['weight'], weight),
            (conv.bias, bias),
            (conv.scale, scale),
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    'optimizer',
    [
        dict(cls=torch.optim.SGD, foreach=True),
        pytest.param(dict(cls=torch.optim.SGD, fused=True), marks=needs_fused),
        dict(cls=torch.optim.AdamW),
    ],
    ids=['foreach', 'fused', 'AdamW'],
)
def test_is_centered_after_any_optimizer(optimizer):
    optimizer = dict(optimizer)
    conv = MimicConv(3, 4, 3)
    step = optimizer.pop('cls')(conv.parameters(), lr=0.1, **optimizer).step
    x = torch.randn(2, 3, 8, 8) + 1
    for _ in range(3):
        conv(x).square().mean().backward()
        step()
    before = conv.weight.detach().clone()
    torch.testing.assert_close(conv(x), F.conv2d(x, centered(before), conv.bias))
    assert_centered(conv.weight)


def test_may_be_called_several_times_in_a_forward():
    conv = MimicConv(3, 4, 3).double()
    weight = conv.weight.detach().clone().requires_grad_()
    levels = [images(1, 3, size, size) for size in (16, 8, 4)]
    sum(conv(x).square().sum() for x in levels).backward()
    sum(F.conv2d(x, weight).square().sum() for x in levels).backward()
    torch.testing.assert_close(conv.weight.grad, weight.grad)


def test_accumulated_gradients_leave_the_weight_alone():
    conv = MimicConv(3, 4, 3)
    conv(torch.randn(1, 3, 8, 8)).sum().backward()
    before, gradient = conv.weight.detach().clone(), conv.weight.grad.clone()
    conv(torch.randn(1, 3, 8, 8)).sum().backward()
    assert torch.equal(conv.weight, before)
    assert not torch.equal(conv.weight.grad, gradient)


@pytest.mark.parametrize(
    'optimizer', [torch.optim.SGD, torch.optim.Adam, torch.optim.LBFGS]
)
def test_weights_changed_by_hand_are_centered_by_the_next_step(optimizer):
    conv = MimicConv(3, 4, 3)
    optimizer = optimizer(conv.parameters(), lr=0.01)
    nn.init.uniform_(conv.weight)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias))

    def closure():
        optimizer.zero_grad()
        loss = conv(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert_centered(conv.weight)


@pytest.mark.parametrize('assign', [False, True])
@pytest.mark.parametrize('frozen', [False, True])
def test_loaded_weights_are_centered(assign, frozen):
    state = uncentered(MimicConv(3, 4, 3)).state_dict()
    expected = centered(state['weight'].clone())
    conv = MimicConv(3, 4, 3).requires_grad_(not frozen)
    conv.load_state_dict(state, assign=assign)
    torch.testing.assert_close(conv.weight.data, expected)
    torch.testing.assert_close(conv.state_dict()['weight'], expected)
    # torch 2.1 trains what it assigns.
    stock = nn.Conv2d(3, 4, 3).requires_grad_(not frozen)
    stock.load_state_dict(state, assign=assign, strict=False)
    assert conv.weight.requires_grad == stock.weight.requires_grad


def test_centering_twice_changes_no_bit_of_filters_with_a_large_mean():
    """Means from a thousandth of the standard deviation to a thousand."""
    for shape in ((60, 3, 7, 7), (60, 64, 1, 1), (60, 512, 3, 3)):
        for ratio in torch.logspace(-3, 3, 20):
            conv = MimicConv(shape[1], shape[0], shape[2])
            std = conv.weight.detach().std()
            for sign in (1, -1):
                with torch.no_grad():
                    conv.weight.add_(sign * ratio * std)
                conv.center_()
                once = conv.weight.detach().clone()
                conv.load_state_dict(conv.state_dict())
                assert torch.equal(conv.weight, once)


def test_centering_a_centered_weight_changes_no_bit():
    for shape in ((64, 3, 7, 7), (32, 64, 1, 1), (16, 512, 3, 3)):
        conv = MimicConv(shape[1], shape[0], shape[2])
        conv.center_()
        before = conv.weight.detach().clone()
        conv.center_()
        assert torch.equal(conv.weight, before)


def test_frozen_stages_do_not_move():
    model = trained(resnet(frozen_stages=1))
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    sum(y.mean() for y in model(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    after = model.state_dict()
    for name in before:
        frozen = name.startswith(('conv1', 'layer1'))
        assert torch.equal(before[name], after[name]) == frozen, name


def test_a_fan_in_of_1_is_refused():
    with pytest.raises(InputError, match='fan-in of 1.*center=False'):
        MimicConv(1, 4, 1)
    MimicConv(1, 4, 1, center=False)
    MimicConv(4, 4, 1, groups=4)


# Its start


def test_starts_he_normal_and_centered():
    conv = MimicConv(64, 512, 3)
    std = (2 / (64 * 9)) ** 0.5
    torch.testing.assert_close(conv.weight.std().item(), std, rtol=0.02, atol=0)
    assert_centered(conv.weight)
    assert not conv.bias.any()
    grouped = MimicConv(256, 256, 3, groups=256)
    assert abs(grouped.weight.std().item() / (2 / 36) ** 0.5 - 1) < 0.06


def test_starts_again_after_the_meta_device():
    """FSDP calls reset_parameters, and to_empty before."""
    conv = MimicConv(64, 64, 3, device='meta')
    conv.set_scale(0.7)
    conv.to_empty(device='cpu')
    for parameter in conv.parameters():
        nn.init.constant_(parameter, torch.nan)
    conv.reset_parameters()
    torch.testing.assert_close(
        conv.weight.std().item(), (2 / (64 * 9)) ** 0.5, rtol=0.02, atol=0
    )
    assert_centered(conv.weight)
    assert not conv.bias.any()
    assert conv.scale.item() == pytest.approx(0.7)


def test_initializers_for_conv2d_leave_the_published_start():
    model = resnet(depth=50, base_channels=32)
    neck = FPN([128, 256, 512, 1024], 64, 4, **MIMIC)
    for module in (model, neck):
        module.init_weights()
        for conv in mimic_convs(module):
            fan_in = conv.weight[0].numel()
            assert_centered(conv.weight)
            torch.testing.assert_close(
                conv.weight.var().item(),
                2 / fan_in * (1 - 1 / fan_in),
                rtol=0.15,
                atol=0,
            )


def test_scalars_of_resnet50_are_the_published_ones():
    model = resnet(depth=50)
    model.init_weights()
    ends = [
        (name, conv)
        for name, conv in model.named_modules()
        if isinstance(conv, MimicConv) and conv.scale is not None
    ]
    branches = [c for name, c in ends if 'downsample' not in name]
    shortcuts = [c for name, c in ends if 'downsample' in name]
    assert len(branches) == 16 and len(shortcuts) == 4
    for number, conv in enumerate(branches, 1):
        assert conv.branch == number
        torch.testing.assert_close(conv.scale.item(), 1.2**3 / number)
    assert {round(c.scale.item(), 6) for c in shortcuts} == {1.2}
    assert all(conv.scale.requires_grad for _, conv in ends)


def test_scalars_of_other_backbones():
    basic = resnet(18).layer1
    assert basic[1].conv2.start == pytest.approx(1.2**2 / 2)
    # Grouped convs are not centered, and need no compensation.
    resnext = ResNeXt(depth=50, groups=4, base_width=4, **MIMIC)
    assert resnext.layer1[0].conv3.start == pytest.approx(1.2**2)
    assert resnext.layer4[2].conv3.branch == 16
    res2net = Res2Net(depth=50, scales=4, base_width=26, **MIMIC)
    assert res2net.layer4[2].conv3.branch == 16
    mobile = MobileNetV2(**MIMIC)
    ends = [
        m.linear_conv.conv
        for m in mobile.modules()
        if type(m).__name__ == 'InvertedResidual'
    ]
    assert [conv.branch for conv in ends if conv.branch] == list(range(1, 11))
    assert all(conv.scale is not None for conv in ends)
    assert Darknet(53, **MIMIC).conv_res_block5[4].conv2.conv.branch == 23


@pytest.mark.parametrize('depthwise', [False, True])
def test_scalars_of_csp_darknet(depthwise):
    """The last stage adds no identity, so its 3 blocks have no number."""
    model = CSPDarknet(widen_factor=0.125, use_depthwise=depthwise, **MIMIC)
    assert block_ends(model, 'DarknetBottleneck') == published(
        [*range(1, 22), None, None, None]
    )
    model.init_weights()
    x = torch.randn(1, 3, 64, 64)
    assert all(y.isfinite().all() for y in model(x))


def test_a_csp_layer_without_identity_has_no_numbers():
    layer = CSPLayer(8, 8, num_blocks=2, add_identity=False, **MIMIC)
    assert block_ends(layer, 'DarknetBottleneck') == published([None, None])


@pytest.mark.parametrize(
    'arch, numbers',
    [
        # A block adds its input if it keeps the stride and the channels.
        (
            'es',
            [None, None, 1, None, 2, 3, 4, None, 5, 6, 7, 8, None, 9, 10, 11, None, 12],
        ),
        ('b0', [None, None, 1, None, 2, None, 3, 4, None, 5, 6, None, 7, 8, 9, None]),
    ],
)
def test_scalars_of_efficientnet(arch, numbers):
    model = EfficientNet(arch, out_indices=(3, 4, 5), **MIMIC)
    ends = block_ends(model, 'EdgeResidual', 'InvertedResidual')
    expected = published(numbers)
    if arch == 'b0':  # Its first block has no expansion, so one conv less.
        expected[0] = (None, pytest.approx(1.2))
    assert ends == expected


def test_scalars_count_the_convs_that_res2net_keeps():
    """Its blocks build a ResNet block first, and delete conv2 of that."""
    model = Res2Net(depth=50, scales=4, base_width=26, base_channels=16, **MIMIC)
    assert model.layer1[0].conv3.start == pytest.approx(1.2**5)


def test_scalars_of_stages_that_replace_others():
    """DetectoRS builds the stages of a ResNet, and then its own."""
    model = DetectoRS_ResNet(depth=50, base_channels=8, **MIMIC)
    assert [conv.branch for conv in mimic_convs(model) if conv.branch] == [
        *range(1, 17)
    ]


def test_scalars_of_a_block_of_ones_own():

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = MimicConv(4, 4, 3), MimicConv(4, 4, 1)

    assert Block().last.scale is None
    BRANCH_ENDS[Block] = BranchEnd('last')
    try:
        blocks = nn.Sequential(Block(), Block())
    finally:
        del BRANCH_ENDS[Block]
    assert blocks[1].last.scale.item() == pytest.approx(1.2**2 / 2)


@pytest.mark.parametrize('first', [MimicConv, MimicNorm])
def test_no_module_is_looked_at_before_the_first_of_mimicnorm(first, monkeypatch):
    """The first one may be anywhere, here at the start of a block."""
    hooks = OrderedDict()
    monkeypatch.setattr(nn.modules.module, '_global_module_registration_hooks', hooks)
    monkeypatch.setattr(
        mimic_norm,
        'watch_registrations',
        cache(mimic_norm.watch_registrations.__wrapped__),
    )
    ResNet(18, base_channels=8)
    assert not hooks
    block = nn.Module()
    if first is MimicConv:
        block.conv1 = MimicConv(4, 4, 3)
        wrong = nn.BatchNorm2d(4)
    else:
        block.conv1 = nn.Conv2d(4, 4, 3)
        wrong = MimicNorm(4)
    with pytest.raises(InputError, match='set norm_cfg|add conv_cfg'):
        block.bn1 = wrong
    scales = [conv.start for conv in mimic_convs(resnet()) if conv.branch]
    assert scales == [pytest.approx(1.2**2 / number) for number in range(1, 9)]
    assert len(hooks) == 1


def test_a_block_that_ends_otherwise_registers_as_ever():
    """A subclass of a known block, in a model without MimicNorm."""

    class Block(BasicBlock):
        def __init__(self):
            super().__init__(4, 4)
            del self.conv2

    assert len(nn.Sequential(Block())) == 1


def test_other_modules_register_as_ever():
    module = nn.Module()
    module.register_module('nothing', None)
    module.norm = nn.BatchNorm2d(3)
    assert dict(module.named_children()) == {'norm': module.norm}


def test_registering_parts_again_changes_no_scalar():
    """As MMEngine's Runner and DetInferencer do, and a user who cuts."""
    model = resnet()
    ends = [conv for conv in mimic_convs(model) if conv.branch]
    expected = [pytest.approx(1.2**2 / number) for number in range(1, 9)]
    for again in (
        revert_sync_batchnorm,
        lambda m: m.add_module('layer1', m.layer1),
        lambda m: nn.Sequential(*m.children()),
        lambda m: nn.Sequential(*m.layer3),
    ):
        again(model)
        assert [conv.scale.item() for conv in ends] == expected
    model.init_weights()
    assert [conv.scale.item() for conv in ends] == expected


def test_composing_models_leaves_scalars_that_have_moved():
    model = resnet()
    with torch.no_grad():
        model.layer1[0].conv2.scale.fill_(7)
    both = nn.ModuleList([resnet(), model])
    assert both[1].layer1[0].conv2.scale.item() == 7


@pytest.mark.parametrize(
    'backbone',
    [
        lambda: ResNet(50, **MIMIC),
        lambda: ResNet(18, **MIMIC),
        lambda: ResNeXt(depth=50, groups=32, base_width=4, **MIMIC),
    ],
    ids=['R50', 'R18', 'X50'],
)
def test_activations_keep_their_scale_through_the_blocks(backbone):
    model = trained(backbone())
    model.init_weights()
    stds = []
    for name, block in model.named_modules():
        if name.startswith('layer') and name.count('.') == 1:
            block.register_forward_hook(
                lambda block, inputs, output: stds.append(output.std().item())
            )
    with torch.no_grad():
        model(torch.randn(2, 3, 192, 192))
    assert len(stds) in (8, 16) and max(stds) < 2 * min(stds)


# Its place in the stack


def test_mimic_norm_is_nothing():
    x = torch.randn(2, 4, 3, 3)
    norm = MimicNorm(4)
    assert norm(x) is x and not norm.state_dict()


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(norm_cfg=MIMIC['norm_cfg']), r"conv_cfg=dict\(type='MimicConv'\)"),
        (dict(conv_cfg=MIMIC['conv_cfg']), r"norm_cfg=dict\(type='MimicNorm'\)"),
        (
            dict(conv_cfg=dict(type='ConvWS'), norm_cfg=MIMIC['norm_cfg']),
            'follows a ConvWS2d.*remove the setting',
        ),
        (
            dict(
                conv_cfg=dict(type='DCNv2', deform_groups=1), norm_cfg=MIMIC['norm_cfg']
            ),
            'follows a ModulatedDeformConv2dPack',
        ),
    ],
)
def test_one_setting_without_the_other_is_refused(kwargs, words):
    kwargs = {**dict(norm_cfg=dict(type='BN')), **kwargs}
    with pytest.raises(InputError, match=words):
        ConvModule(3, 4, 3, **kwargs)
    if 'DCNv2' not in str(kwargs):
        with pytest.raises(InputError, match=words):
            ResNet(18, **kwargs)


def test_a_backbone_that_ignores_conv_cfg_is_refused():
    with pytest.raises(InputError, match=r'ignores conv_cfg \(CSPNeXt'):
        CSPNeXt(widen_factor=0.125, **MIMIC)


def test_weights_of_a_bn_model_are_refused():
    bn = ResNet(18, base_channels=8)
    with pytest.raises(InputError, match='tools/convert.py --to mimicnorm'):
        resnet().load_state_dict(bn.state_dict(), strict=False)


def test_copies_and_pickles_compute_the_same():
    model = resnet()
    x = torch.randn(1, 3, 64, 64)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(map(torch.equal, twin(x), model(x)))


def test_a_state_dict_holds_what_is_applied():
    model = trained(resnet().double())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = images()
    sum(y.mean() for y in model(x)).backward()
    optimizer.step()
    twin = resnet().double()
    twin.load_state_dict(model.state_dict())
    for conv in mimic_convs(twin):
        assert_centered(conv.weight)
    assert all(map(torch.equal, twin(x), model(x)))


def test_a_resumed_run_goes_on_from_the_same_bits():
    def run(model, optimizer, steps):
        for seed in steps:
            torch.manual_seed(seed)
            optimizer.zero_grad()
            sum(y.square().mean() for y in model(torch.randn(2, 3, 32, 32))).backward()
            optimizer.step()

    def sgd(model):
        return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)

    model = trained(resnet())
    optimizer = sgd(model)
    run(model, optimizer, range(2))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    run(model, optimizer, range(2, 4))
    resumed = trained(resnet())
    resumed_optimizer = sgd(resumed)
    resumed.load_state_dict(saved[0])
    resumed_optimizer.load_state_dict(saved[1])
    run(resumed, resumed_optimizer, range(2, 4))
    after, expected = resumed.state_dict(), model.state_dict()
    assert all(torch.equal(after[name], expected[name]) for name in expected)


@pytest.mark.parametrize('buffers', [True, False])
def test_ema_averages_centered_weights(buffers):
    model = trained(resnet())
    ema = ExponentialMovingAverage(model, momentum=0.5, update_buffers=buffers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = None
    for _ in range(3):
        sum(y.mean() for y in model(torch.randn(1, 3, 32, 32))).backward()
        optimizer.step()
        ema.update_parameters(model)
        now = model.state_dict()
        expected = (
            copy.deepcopy(now)
            if expected is None
            else {name: expected[name].lerp(now[name], 0.5) for name in now}
        )
    averaged = resnet()
    averaged.load_state_dict(expected)
    # Without buffers, MMEngine reads the parameters between two forwards: the
    # average is of weights that are not centered, and then it is.
    x = torch.randn(1, 3, 32, 32)
    ema.module.train(False), averaged.train(False)
    for one, other in zip(ema(x), averaged(x)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_autocast_keeps_the_weight_in_float32():
    model = trained(resnet())
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    with torch.autocast('cpu', torch.bfloat16):
        outputs = model(x)
    sum(y.float().mean() for y in outputs).backward()
    assert outputs[0].dtype == torch.bfloat16
    for one, other in zip(outputs, expected):
        torch.testing.assert_close(one.float(), other, rtol=0.1, atol=0.1)
    for conv in mimic_convs(model):
        assert conv.weight.dtype == conv.weight.grad.dtype == torch.float32


def test_gradient_checkpointing_changes_nothing():
    conv, x = MimicConv(3, 4, 3), torch.randn(2, 3, 8, 8)
    x.requires_grad_()
    twin = copy.deepcopy(conv)
    conv(x).square().sum().backward()
    checkpoint(twin, x, use_reentrant=False).square().sum().backward()
    assert torch.equal(conv.weight.grad, twin.weight.grad)


@needs_setup_context
@pytest.mark.parametrize('training', [True, False])
def test_compiles_without_graph_breaks(training):
    conv = MimicConv(3, 4, 3).train(training)
    conv.set_scale(0.5)
    twin, x = copy.deepcopy(conv), torch.randn(2, 3, 8, 8)
    compiled = torch.compile(conv, fullgraph=True, backend='aot_eager')
    for _ in range(2):
        torch.testing.assert_close(compiled(x), twin(x))
    if training:
        compiled(x).sum().backward()
        twin(x).sum().backward()
        torch.testing.assert_close(conv.weight.grad, twin.weight.grad)
        torch.testing.assert_close(conv.weight, twin.weight)


@pytest.mark.parametrize('scale', [None, 0.5])
def test_torchscript(scale):
    conv, x = MimicConv(3, 4, 3).eval(), torch.randn(2, 3, 8, 8)
    if scale:
        conv.set_scale(scale)
    assert torch.equal(torch.jit.script(conv)(x), conv(x))


def test_channels_last():
    conv = MimicConv(3, 4, 3)
    twin = copy.deepcopy(conv).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(twin(x.to(memory_format=torch.channels_last)), conv(x))
    assert_centered(twin.weight)


# What it costs


def mebibytes(model, x):
    trained(model)
    return (
        saved_bytes(lambda: sum(y.mean() for y in model(x)), model.parameters()) / 2**20
    )


def test_keeps_no_activation_for_bias_scalar_and_norm():
    module = ConvModule(8, 8, 3, padding=1, bias=True, **MIMIC)
    module.conv.set_scale(0.5)
    plain = ConvModule(8, 8, 3, padding=1)
    x = torch.randn(2, 8, 32, 32, requires_grad=True)
    ours, least = (saved_bytes(lambda: m(x), m.parameters()) for m in (module, plain))
    # The product of weight and scalar is all there is in addition to them.
    assert ours == least + module.conv.weight.nbytes


def test_keeps_the_smaller_one_of_scaled_weight_and_scaled_input():
    conv = MimicConv(64, 64, 3)
    conv.set_scale(0.5)
    x = torch.randn(1, 64, 4, 4, requires_grad=True)
    saved = saved_bytes(lambda: conv(x.relu()), conv.parameters())
    assert saved == 2 * x.nbytes  # The output of the ReLU, and its product.


def test_counting_saved_bytes_frees_them():
    x = torch.randn(2, 3, requires_grad=True)
    outputs = []

    def forward():
        output = x.exp()  # Saves its output.
        outputs.append(weakref.ref(output))
        return output

    assert saved_bytes(forward, [x]) == x.nbytes
    assert outputs[0]() is None


def test_resnet50_saves_what_its_relus_and_scaled_weights_take():
    x = torch.randn(2, 3, 256, 256)
    bn = ResNet(50, frozen_stages=-1, norm_eval=False)
    mimic = ResNet(50, frozen_stages=-1, **MIMIC)
    copies = (
        sum(conv.weight.nbytes for conv in mimic_convs(mimic) if conv.scale is not None)
        / 2**20
    )
    saved, full = mebibytes(mimic, x), mebibytes(bn, x)
    assert (saved - copies) / full < 0.5
    assert saved / full < 0.65
