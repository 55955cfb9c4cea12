"""Any torch model: batch norm turned into psBN and back, and its dead channels."""

import copy
import pickle

import pytest
import torch
from helpers import loss_of, network, randomize
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmpsbn.analysis import collapse_report
from mmpsbn.errors import InputError
from mmpsbn.layers import (
    MimicNorm,
    PSBatchNorm1d,
    PSBatchNorm2d,
    PSBatchNorm3d,
    PSSyncBatchNorm,
    convert_batchnorm,
    revert_batchnorm,
)
from mmpsbn.layers.post_shifted_bn import PostShift

POST_SHIFTED = {
    nn.BatchNorm1d: PSBatchNorm1d,
    nn.BatchNorm2d: PSBatchNorm2d,
    nn.BatchNorm3d: PSBatchNorm3d,
    nn.SyncBatchNorm: PSSyncBatchNorm,
}


class BatchNormAct(nn.BatchNorm2d):
    """A batch norm with an activation inside, as timm has."""

    def forward(self, input):
        return F.leaky_relu(super().forward(input), 0.1, inplace=True)


def batch_norms(model):
    return [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]


def leaky():
    """A network with Leaky ReLU, outside and inside of its norm layers."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.LeakyReLU(0.1),
        nn.Conv2d(8, 8, 3),
        BatchNormAct(8),
        nn.Conv2d(8, 8, 1),
        nn.BatchNorm2d(8),
    )


@pytest.mark.parametrize('kind', POST_SHIFTED)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(
    'options', [{}, dict(momentum=None), dict(track_running_stats=False)], ids=str
)
def test_a_norm_layer_alone(kind, training, options):
    layer = kind(3, eps=1e-3, **options).double()
    if not options.get('track_running_stats', True):
        layer.register_buffer('running_mean', None)
        nn.init.normal_(layer.bias)
    else:
        randomize(layer)
    layer.train(training)
    before = copy.deepcopy(layer)
    assert convert_batchnorm(layer, alpha=0.3) is layer
    assert type(layer) is POST_SHIFTED[kind] and layer.alpha == 0.3
    assert layer.training == training
    rank = {nn.BatchNorm1d: 1, nn.BatchNorm3d: 3}.get(kind, 2)
    x = torch.randn(4, 3, *[5] * rank, dtype=torch.double)
    if kind is nn.SyncBatchNorm:  # It has no kernels for CPUs.
        before.__class__ = nn.BatchNorm2d
    for _ in range(2):
        assert torch.equal(layer(x), before(x))
    assert revert_batchnorm(layer) is layer and type(layer) is kind
    state = layer.state_dict()
    assert state.keys() == before.state_dict().keys()
    for key, value in before.state_dict().items():
        assert torch.equal(state[key], value)
    assert not {'alpha', '_loaded', '__module__'} & set(vars(layer))


def test_the_objects_stay():
    model = network(nn.BatchNorm2d).double()
    norms = batch_norms(model)
    norms[0].requires_grad_(False).eval()
    norms[1].bias = norms[0].bias  # Tied.
    calls = []
    norms[1].register_forward_hook(lambda *args: calls.append(args))

    def objects():
        values = (*model.modules(), *model.parameters(), *model.buffers())
        return [*map(id, values)]

    before = objects()
    for change in (convert_batchnorm, revert_batchnorm):
        change(model)
        loss_of(model, torch.randn(2, 3, 8, 8).double())
        assert objects() == before
    assert len(calls) == 2 and batch_norms(model) == norms
    assert model[1] is model[4] and norms[1].bias is norms[0].bias
    assert not norms[0].training and not norms[0].bias.requires_grad


def steps(model, optimizer, number):
    for x in torch.randn(number, 4, 3, 8, 8, generator=torch.manual_seed(1)).double():
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.05)


def assert_equal_weights(one, two):
    for a, b in zip(one.state_dict().values(), two.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_an_optimizer_that_holds_the_parameters_acts_on_beta_and_back():
    model = network(nn.BatchNorm2d).double()
    optimizer = sgd(model)
    steps(model, optimizer, 2)
    stock = copy.deepcopy(model)
    convert_batchnorm(model, alpha=0.3)
    native = network(PSBatchNorm2d, alpha=0.3).double()
    native.load_state_dict(model.state_dict())
    native_optimizer = sgd(native)
    native_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for pair in ((model, optimizer), (native, native_optimizer)):
        steps(*pair, 3)
    assert_equal_weights(model, native)

    revert_batchnorm(model)
    stock.load_state_dict(model.state_dict())
    stock_optimizer = sgd(stock)
    stock_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for pair in ((model, optimizer), (stock, stock_optimizer)):
        steps(*pair, 3)
    assert_equal_weights(model, stock)
    with pytest.raises(AssertionError):
        assert_equal_weights(model, native)


def test_a_bias_of_0_is_kept():
    model = convert_batchnorm(network(nn.BatchNorm2d)).train()
    model.apply(lambda module: None)
    assert not any(norm.bias.any() for norm in batch_norms(model))


def test_layers_with_psbn_get_the_alpha():
    model = nn.Sequential(PSBatchNorm2d(3), nn.BatchNorm2d(3, affine=False))
    convert_batchnorm(model, alpha=0.4)
    assert model[0].alpha == 0.4 and model[0].bias.tolist() == pytest.approx([0.1] * 3)
    assert type(model[1]) is nn.BatchNorm2d
    assert type(revert_batchnorm(model)[0]) is nn.BatchNorm2d


def test_a_subclass_keeps_its_forward_pass():
    model = leaky()
    for norm in batch_norms(model):
        randomize(norm)
    x = torch.randn(2, 3, 8, 8)
    y = model.eval()(x)
    convert_batchnorm(model)
    assert isinstance(model[4], PostShift) and isinstance(model[4], BatchNormAct)
    for twin in (
        model,
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.fx.symbolic_trace(model),
    ):
        assert torch.equal(twin(x), y)
    clone = pickle.loads(pickle.dumps(model))
    assert type(clone[4]) is type(model[4]) and clone[4].alpha == 0.1
    with torch.no_grad():
        clone[4].weight.zero_(), clone[4].bias.fill_(-1)
    clone[4].bias.grad = torch.zeros(8)
    torch.optim.SGD(clone.parameters(), lr=1, weight_decay=1).step()
    assert clone[4].bias.tolist() == pytest.approx([0.1] * 8)
    assert type(revert_batchnorm(model)[4]) is BatchNormAct


def test_it_fuses_into_a_convolution():
    model = leaky().eval()
    randomize(model[1])
    x = torch.randn(2, 3, 8, 8)
    expected = model[:2](x)
    convert_batchnorm(model)
    torch.testing.assert_close(fuse_conv_bn_eval(*model[:2])(x), expected)


@pytest.mark.parametrize(
    'model, words',
    [
        (nn.Linear(2, 2), 'its norm layers: none'),
        (nn.BatchNorm2d(3, affine=False), 'its norm layers: BatchNorm2d'),
        (nn.Sequential(nn.GroupNorm(1, 2)), 'its norm layers: GroupNorm'),
        (nn.LazyBatchNorm2d(), 'Run the model on one batch'),
    ],
)
def test_models_without_batch_norm_to_convert(model, words):
    with pytest.raises(InputError, match=words):
        convert_batchnorm(model)


def test_arguments_that_are_refused():
    model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match='alpha must be a finite number >= 0'):
        convert_batchnorm(model, alpha=-1)
    assert type(model[0]) is nn.BatchNorm2d
    with pytest.raises(InputError, match='has no psBN layer'):
        revert_batchnorm(model)


# The report


def test_dead_channels_of_a_network_with_leaky_relu():
    model = leaky()
    for index, channels in ((1, [2]), (4, [0, 5]), (6, [7])):
        with torch.no_grad():
            model[index].bias.fill_(9)
            model[index].weight[channels], model[index].bias[channels] = 1e-6, -1.0
            model[index].bias[1] = -100.0  # By parameters: gamma is 1.
    model[1].eval()
    x = torch.randn(4, 3, 8, 8)
    report = collapse_report(model, x)
    assert model[4].training and not model[1].training
    assert not any(layer.num_batches_tracked for layer in batch_norms(model))
    found = {layer.name: layer for layer in report.layers}
    assert [found[name].dead for name in '146'] == [[1, 2], [0, 1, 5], []]
    assert [found[name].judged for name in '146'] == [True, True, False]
    rows = [line.split() for line in str(report).splitlines()]
    assert rows[1] == ['1', '8', '2', '(25.0%)', '2', '(25.0%)', '-']
    assert rows[3] == ['6', '8', '-', '-', '-']
    assert rows[4] == ['all', '24', '5', '(31.2%)', '5', '(31.2%)', '-']
    # Without inputs, whether a rectifier follows is not known.
    rows = [line.split() for line in str(collapse_report(model)).splitlines()]
    assert rows[3] == ['6', '8', '2', '(25.0%)']
    assert rows[4] == ['all', '24', '7', '(29.2%)']


def test_a_sum_behind_an_activation_is_not_that_of_the_norm_layer():

    class Residual(BatchNormAct):
        def forward(self, input):
            return super().forward(input) + 1

    model = nn.Sequential(Residual(3), nn.ReLU())
    nn.init.constant_(model[0].bias, -9)
    (layer,) = collapse_report(model, torch.rand(2, 3, 4, 4)).layers
    assert layer.dead == [0, 1, 2] and not layer.after_sum


def test_nan_is_not_dead():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    model[0].bias.data = torch.tensor([-9, float('nan'), 0])
    (layer,) = collapse_report(model, torch.rand(2, 3, 4, 4)).layers
    assert layer.dead == [0] and layer.rarely_positive == [0]


def test_a_report_of_other_models():
    assert 'model ' in str(collapse_report(nn.BatchNorm2d(3), torch.randn(1, 3, 2, 2)))
    assert str(collapse_report(MimicNorm(3))).split()[-1] == '-'
    with pytest.raises(InputError, match='Linear has no norm layer'):
        collapse_report(nn.Linear(2, 2))


# timm


@pytest.mark.parametrize(
    'name, kind',
    [
        ('resnet18', 'PSBatchNorm2d'),
        ('mobilenetv2_050', 'PSBatchNormAct2d'),
        ('efficientnet_lite0', 'PSBatchNormAct2d'),
    ],
)
def test_models_of_timm(timm, name, kind):
    model = timm.create_model(name, num_classes=2)
    norms, x = batch_norms(model), torch.randn(2, 3, 64, 64)
    for norm in norms:
        nn.init.normal_(norm.bias, 0, 0.1)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=5.0)
    convert_batchnorm(model)
    assert {type(norm).__name__ for norm in norms} == {kind}
    for training in (True, False):
        model.train(training), twin.train(training)
        assert torch.equal(model(x), twin(x))
    with torch.no_grad():
        dead = norms[1]  # A rectifier follows, in each of the models.
        dead.weight[3], dead.bias[3] = 0, -1
    layer = collapse_report(model, x).layers[1]
    assert 3 in layer.dead and 3 in layer.rarely_positive
    model(x).sum().backward()
    optimizer.step()
    # lr * decay = 0.5: beta = -1.1 is halved.
    assert dead.bias[3].item() == pytest.approx(0.1 - 1.1 / 2)
    twin.load_state_dict(model.state_dict())
    revert_batchnorm(model)
    assert {type(norm) for norm in norms} == {type(m) for m in batch_norms(twin)}
    assert torch.equal(model(x), twin(x))


def test_frozen_batch_norm_of_timm(timm):
    model = timm.create_model('mobilenetv2_050')
    model = timm.layers.freeze_batch_norm_2d(model)
    with pytest.raises(InputError, match='FrozenBatchNormAct2d'):
        convert_batchnorm(model)
