"""psBN as a layer: what it computes, learns and refuses."""

import copy
import math
import pickle

import pytest
import torch
from helpers import needs_half, needs_onnx, randomize
from mmdet.models.backbones import ResNet
from torch import nn

from mmpsbn.layers import PSBatchNorm1d, PSBatchNorm2d, PSBatchNorm3d, PSSyncBatchNorm

SHAPES = {
    PSBatchNorm1d: (4, 3, 5),
    PSBatchNorm2d: (4, 3, 5, 6),
    PSBatchNorm3d: (4, 3, 2, 5, 6),
    PSSyncBatchNorm: (4, 3, 5, 6),
}
STOCK = {
    PSBatchNorm1d: nn.BatchNorm1d,
    PSBatchNorm2d: nn.BatchNorm2d,
    PSBatchNorm3d: nn.BatchNorm3d,
    PSSyncBatchNorm: nn.BatchNorm2d,
}
# BN in float16.
HALF = pytest.param(torch.float16, marks=needs_half)
layers = pytest.mark.parametrize('cls', SHAPES)


def stock_twin(layer):
    """Return the stock BN with this layer's gamma, beta and statistics."""
    twin = STOCK[type(layer)](layer.num_features, layer.eps, layer.momentum).to(
        layer.weight.dtype
    )
    with torch.no_grad():
        twin.weight.copy_(layer.weight)
        twin.bias.copy_(layer.bias - layer.alpha)
    twin.running_mean.copy_(layer.running_mean)
    twin.running_var.copy_(layer.running_var)
    return twin.train(layer.training)


@layers
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('momentum', [0.1, None])
def test_is_bn_shifted_by_alpha(cls, training, momentum):
    layer = randomize(cls(3, momentum=momentum, alpha=0.3).double())
    layer.train(training)
    twin = stock_twin(layer)
    x = torch.randn(SHAPES[cls], dtype=torch.double, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    y, expected = layer(x), twin(z) + 0.3
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.running_mean, twin.running_mean)
    torch.testing.assert_close(layer.running_var, twin.running_var)

    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, z.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.weight.grad, twin.weight.grad)
    torch.testing.assert_close(layer.bias.grad, twin.bias.grad)


@layers
def test_gradients_are_those_of_the_function(cls):
    layer = cls(3).double()
    x = torch.randn(SHAPES[cls], dtype=torch.double, requires_grad=True)

    def function(x, gamma, beta):
        return torch.func.functional_call(layer, dict(weight=gamma, bias=beta), (x,))

    gamma, beta = torch.randn(2, 3, dtype=torch.double)
    assert torch.autograd.gradcheck(
        function, (x, gamma.requires_grad_(), beta.requires_grad_())
    )


@layers
def test_starts_at_gamma_1_and_bias_alpha(cls):
    layer = cls(3)
    for _ in range(2):
        assert layer.weight.tolist() == [1] * 3
        torch.testing.assert_close(layer.bias, torch.full((3,), 0.1))
        randomize(layer)
        layer.reset_parameters()


def test_alpha_costs_no_memory_of_the_size_of_the_activation():
    saved = {}
    for layer in (nn.BatchNorm2d(8), PSBatchNorm2d(8)):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            layer(torch.randn(2, 8, 16, 16))
        saved[type(layer)] = sum(n for n in sizes if n > 8)
    assert saved[PSBatchNorm2d] == saved[nn.BatchNorm2d] == 2 * 8 * 16 * 16


@pytest.mark.parametrize(
    'norm, alive', [(nn.BatchNorm2d, False), (PSBatchNorm2d, True)]
)
def test_a_collapsed_filter_comes_back_under_psbn_only(norm, alive):
    layer = norm(2)
    with torch.no_grad():
        layer.weight[0] = 0
        list(layer.parameters())[1][0] = -1
    optimizer = torch.optim.SGD(layer.parameters(), lr=1, weight_decay=0.05)
    x = torch.randn(8, 2, 4, 4)
    for _ in range(100):
        optimizer.zero_grad()
        # The loss wants the filter to follow its input.
        (torch.relu(layer(x)) - torch.relu(x)).square().mean().backward()
        optimizer.step()
    output = torch.relu(layer(x))
    assert bool(output[:, 0].any()) == alive
    assert output[:, 1].any()


def test_a_filter_comes_back_when_decay_has_shrunk_beta_to_alpha():
    layer = PSBatchNorm2d(1, alpha=0.1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(0.1 - 0.2)
    optimizer = torch.optim.SGD(
        layer.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3
    )
    x, steps = torch.randn(4, 1, 2, 2), 0
    while not (output := torch.relu(layer(x))).any():
        optimizer.zero_grad()
        output.sum().backward()
        optimizer.step()
        steps += 1
    # exp(-lr * decay / (1 - momentum) * steps) = alpha / |beta|
    assert steps == pytest.approx(math.log(0.2 / 0.1) / 1e-3, rel=0.01)


@layers
@pytest.mark.parametrize('alpha', [-0.1, math.nan, math.inf, '0.1', None, True])
def test_refuses_an_alpha_that_is_no_finite_number_from_0(cls, alpha):
    with pytest.raises(ValueError, match='alpha must be a finite number >= 0'):
        cls(3, alpha=alpha)


@layers
@pytest.mark.parametrize('argument', ['affine', 'bias'])
def test_refuses_to_be_without_beta(cls, argument):
    with pytest.raises(ValueError, match='psBN needs its learned bias'):
        cls(3, **{argument: False})


@layers
def test_refuses_another_rank(cls):
    rank = 1 if cls is PSSyncBatchNorm else 6
    with pytest.raises(ValueError, match=f'got {rank}D input'):
        cls(3)(torch.randn([3] * rank))


@layers
@pytest.mark.parametrize('training', [True, False])
def test_refuses_a_negative_eps_where_bn_does(cls, training):
    layer, stock = (norm(3, eps=-1.0).train(training) for norm in (cls, STOCK[cls]))
    x = torch.randn(SHAPES[cls])
    try:
        stock(x)  # torch 2.4 takes it.
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)):
            layer(x)


@layers
@pytest.mark.parametrize('training', [True, False])
def test_takes_an_empty_batch_as_bn_does(cls, training):
    layer = cls(3).train(training)
    empty = torch.randn(0, *SHAPES[cls][1:])
    assert layer(empty).shape == STOCK[cls](3).train(training)(empty).shape
    assert layer.running_mean.isfinite().all()


@pytest.mark.parametrize('dtype', [HALF, torch.bfloat16, torch.float32, torch.float64])
def test_forward_applies_the_bias_that_is_read(dtype):
    layer = randomize(PSBatchNorm2d(1000).to(dtype)).eval()
    layer.running_mean.zero_()
    nothing = torch.zeros(1, 1000, 1, 1, dtype=dtype)
    for alpha in (0.1, 0.3):
        layer.alpha = alpha
        assert torch.equal(layer(nothing).flatten(), layer.bias)


def test_alpha_0_is_bn():
    layer = randomize(PSBatchNorm2d(3, alpha=0))
    x = torch.randn(SHAPES[PSBatchNorm2d])
    assert torch.equal(layer(x), stock_twin(layer)(x))


def test_without_running_statistics_it_is_bn_without_them():
    layer = PSBatchNorm2d(3, track_running_stats=False).eval()
    twin = nn.BatchNorm2d(3, track_running_stats=False).eval()
    x = torch.randn(SHAPES[PSBatchNorm2d])
    torch.testing.assert_close(layer(x), twin(x) + 0.1)


@pytest.mark.parametrize('dtype', [torch.bfloat16, HALF])
@pytest.mark.parametrize('training', [True, False])
def test_autocast_keeps_parameters_and_statistics_in_float32(dtype, training):
    layer = PSBatchNorm2d(3).train(training)
    twin = stock_twin(layer)
    x = torch.randn(SHAPES[PSBatchNorm2d])
    conv = nn.Conv2d(3, 3, 1)
    with torch.autocast('cpu', dtype):
        y, expected = layer(conv(x)), twin(conv(x)) + 0.1
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected.float(), rtol=0.02, atol=0.02)
    y.float().square().sum().backward()
    assert layer.bias.grad.dtype == torch.float32
    assert layer.running_mean.dtype == torch.float32
    torch.testing.assert_close(layer.running_mean, twin.running_mean)


def test_channels_last_stays_channels_last():
    layer = PSBatchNorm2d(3)
    x = torch.randn(SHAPES[PSBatchNorm2d])
    y = layer(x.to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, layer(x))


@layers
def test_compiles_without_a_graph_break(cls):
    layer = randomize(cls(3))
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend='aot_eager')
    x = torch.randn(SHAPES[cls])
    for training in (True, False):
        y = compiled.train(training)(x)
        torch.testing.assert_close(y, layer.train(training)(x))
    y.sum().backward()
    layer(x).sum().backward()
    torch.testing.assert_close(compiled.bias.grad, layer.bias.grad)


@pytest.mark.parametrize('norm', ['BN', 'psBN'])
def test_gradient_checkpointing_computes_the_same(norm):
    """Running statistics are updated twice, as torch does it with BN."""
    model = ResNet(
        50,
        base_channels=8,
        norm_cfg=dict(type=norm),
        norm_eval=False,
        zero_init_residual=False,
    ).double()
    model.init_weights()
    other = ResNet(
        50, base_channels=8, norm_cfg=dict(type=norm), norm_eval=False, with_cp=True
    ).double()
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.double)
    for net in (model, other):
        net.train()
        sum(y.sum() for y in net(x.requires_grad_())).backward()
    for (name, one), (_, two) in zip(
        model.named_parameters(), other.named_parameters()
    ):
        torch.testing.assert_close(one.grad, two.grad, msg=name)
    assert model.layer1[0].norm1.num_batches_tracked == 1
    assert other.layer1[0].norm1.num_batches_tracked == 2
    mean = model.layer1[0].norm1.running_mean
    torch.testing.assert_close(other.layer1[0].norm1.running_mean, mean + 0.9 * mean)


@needs_onnx
def test_exports():
    layer = randomize(PSBatchNorm2d(3)).eval()
    x = torch.randn(SHAPES[PSBatchNorm2d])
    for strict in (False, True):
        module = torch.export.export(layer, (x,), strict=strict).module()
        torch.testing.assert_close(module(x), layer(x))
    torch.testing.assert_close(torch.jit.trace(layer, x)(x), layer(x))


@layers
@pytest.mark.parametrize(
    'copied',
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=['deepcopy', 'pickle'],
)
def test_a_copy_is_equal_and_apart(cls, copied):
    layer = randomize(cls(3, alpha=0.3)).eval()
    twin = copied(layer)
    x = torch.randn(SHAPES[cls])
    assert torch.equal(twin(x), layer(x))
    with torch.no_grad():
        twin.bias.copy_(torch.zeros(3))
    torch.testing.assert_close(twin.bias, torch.zeros(3))
    assert layer.bias.abs().min() > 0


def test_shows_alpha():
    assert 'alpha=0.3' in repr(PSBatchNorm2d(3, alpha=0.3))


def test_a_layer_of_inference_mode_can_be_evaluated():
    with torch.inference_mode():
        layer = PSBatchNorm2d(3)
        nn.init.zeros_(layer.bias)
    assert not layer.eval().bias.any()
