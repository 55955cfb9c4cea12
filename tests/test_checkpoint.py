"""A psBN checkpoint is a BN checkpoint, on every way in and out."""

import copy

import pytest
import torch
from helpers import (
    Toy,
    loss_of,
    needs_swapping,
    network,
    psbn,
    toy_runner,
    trained_network,
)
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import load_checkpoint, save_checkpoint
from torch import nn

from mmpsbn.layers import PSSyncBatchNorm


def assert_same_function(one, other):
    one, other = copy.deepcopy((one, other))
    x = torch.randn(4, 3, 8, 8)
    for training in (False, True):
        with torch.no_grad():
            torch.testing.assert_close(
                one.train(training)(x), other.train(training)(x), rtol=1e-5, atol=1e-6
            )


def bn(**kwargs):
    return network(nn.BatchNorm2d, **kwargs)


def pssyncbn(**kwargs):
    return network(PSSyncBatchNorm, **kwargs)


PAIRS = pytest.mark.parametrize(
    'source, target',
    [
        (bn, psbn),
        (psbn, bn),
        (psbn, psbn),
        (bn, pssyncbn),
        (pssyncbn, bn),
        (psbn, lambda: psbn(alpha=0.4)),
        (lambda: psbn(alpha=0.4), bn),
    ],
    ids=[
        'bn-psbn',
        'psbn-bn',
        'psbn-psbn',
        'bn-pssyncbn',
        'pssyncbn-bn',
        'alpha 0.1-0.4',
        'alpha 0.4-bn',
    ],
)


@PAIRS
def test_loads_key_for_key_and_computes_the_same(source, target):
    source, target = trained_network(source()), target()
    state = source.state_dict()
    assert list(state) == list(target.state_dict()) == list(bn().state_dict())
    target.load_state_dict(state, strict=True)
    assert_same_function(source, target)


@PAIRS
def test_loads_from_a_file_of_mmengine(source, target, tmp_path):
    source, target = trained_network(source()), target()
    file = str(tmp_path / 'checkpoint.pth')
    save_checkpoint(dict(state_dict=source.state_dict()), file)
    types = {type(v) for v in torch.load(file)['state_dict'].values()}
    assert types == {torch.Tensor}
    load_checkpoint(target, file, strict=True, map_location='cpu')
    assert_same_function(source, target)


@pytest.fixture(
    params=[False, pytest.param(True, marks=needs_swapping)], ids=['set', 'swapped']
)
def swap_tensors(request):
    if not request.param:  # torch's default.
        yield
        return
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@PAIRS
def test_loads_by_assignment(source, target, swap_tensors):
    source, target = trained_network(source()), target()
    target.load_state_dict(copy.deepcopy(source.state_dict()), assign=True)
    assert_same_function(source, target)


def test_the_dict_is_left_as_it_was_and_loads_twice():
    source = trained_network(bn())
    state = source.state_dict()
    before = copy.deepcopy(state)
    targets = [psbn(), psbn(alpha=0.4)]
    for target in targets * 2:
        target.load_state_dict(state)
    assert list(state) == list(before)
    assert all(torch.equal(state[key], before[key]) for key in state)
    for target in targets:
        assert_same_function(source, target)


def test_a_deep_copy_saves_and_loads_like_the_original():
    source = trained_network(psbn())
    target = bn()
    target.load_state_dict(copy.deepcopy(source).state_dict())
    assert_same_function(source, target)


def test_saving_and_loading_is_exact_for_psbn():
    source, target = trained_network(psbn()), psbn()
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    for one, other in zip(source.parameters(), target.parameters()):
        assert torch.equal(one, other)


def test_a_half_precision_checkpoint_keeps_its_bias():
    state = {k: v.half() for k, v in trained_network(bn()).state_dict().items()}
    target = psbn()
    target.load_state_dict(state)
    torch.testing.assert_close(
        target[1].bias, state['1.bias'].float(), rtol=0, atol=1e-6
    )


def test_the_state_dict_is_live_like_bn_s():
    """MMEngine broadcasts and averages through its tensors."""
    model = psbn()
    with torch.no_grad():
        for value in model.state_dict().values():
            value.data.copy_(torch.ones_like(value))
    for value in model.state_dict().values():
        assert (value == 1).all()
    assert (model[1].bias == 1).all()


@pytest.mark.parametrize('update_buffers', [False, True])
def test_ema_averages_as_it_does_for_bn(update_buffers):
    """The average of applied biases is the applied average of betas."""
    one, other = bn(), psbn()
    other.load_state_dict(one.state_dict())
    averages = []
    for model in (one, other):
        torch.manual_seed(1)
        # The same decay towards zero shift for both: none.
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        average = ExponentialMovingAverage(
            model, momentum=0.3, update_buffers=update_buffers
        )
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(model, torch.randn(4, 3, 8, 8)).backward()
            optimizer.step()
            average.update_parameters(model)
        averages.append(average)
    assert not torch.allclose(averages[1].module[1].bias, other[1].bias)
    for (name, a), (_, b) in zip(
        averages[0].state_dict().items(), averages[1].state_dict().items()
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)
    assert_same_function(averages[0].module, averages[1].module)


@pytest.mark.parametrize(
    'ema',
    [
        None,
        dict(type='EMAHook', momentum=0.3),
        dict(type='EMAHook', momentum=0.3, update_buffers=True),
        dict(type='EMAHook', momentum=0.3, begin_epoch=1, update_buffers=True),
    ],
    ids=['no ema', 'ema', 'ema with buffers', 'late ema'],
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, ema):
    hooks = dict(custom_hooks=[ema] if ema else None)
    whole = toy_runner(tmp_path / 'whole', Toy(), epochs=2, **hooks)
    torch.manual_seed(0)
    first = toy_runner(tmp_path / 'part', Toy(), epochs=1, **hooks)
    first.model.load_state_dict(whole.model.state_dict())
    whole.train()
    first.train()
    second = toy_runner(tmp_path / 'part', Toy(), epochs=2, resume=True, **hooks)
    second.train()
    states = [runner.model.state_dict() for runner in (whole, second)]
    if ema:
        states += [
            [
                hook.ema_model.state_dict()
                for hook in runner.hooks
                if isinstance(hook, EMAHook)
            ][0]
            for runner in (whole, second)
        ]
    for one, other in zip(states[::2], states[1::2]):
        for key in one:
            assert torch.equal(one[key], other[key]), key
    moved = states[0]['body.1.bias'] - 0.1
    assert moved.abs().min() > 1e-4


def test_a_runner_s_checkpoint_with_ema_loads_into_bn(tmp_path):
    runner = toy_runner(
        tmp_path / 'run', Toy(), custom_hooks=[dict(type='EMAHook', momentum=0.3)]
    )
    runner.train()
    stock = Toy(nn.BatchNorm2d)
    load_checkpoint(stock, str(tmp_path / 'run' / 'epoch_2.pth'), strict=True)
    ema = next(h for h in runner.hooks if isinstance(h, EMAHook)).ema_model
    assert_same_function(stock.body, ema.module.body)
