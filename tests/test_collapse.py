"""Filter collapse: found exactly, and watched while a model trains."""

import copy
import json

import pytest
import torch
from mmdet.models.backbones import MobileNetV2, ResNet
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as F

from mmpsbn.analysis import ChannelWatch, positive_probability
from mmpsbn.engine.filter_collapse_hook import (HISTORY, FilterCollapseHook,
                                                read_history, shares)
from mmpsbn.errors import InputError
from mmpsbn.layers import PSBatchNorm2d

MIMIC = dict(
    conv_cfg=dict(type='MimicConv'), norm_cfg=dict(type='MimicNorm'))
NORMS = dict(
    BN=dict(norm_cfg=dict(type='BN')),
    psBN=dict(norm_cfg=dict(type='psBN')),
    GN=dict(norm_cfg=dict(type='GN', num_groups=4)),
    MimicNorm=MIMIC)


def watched(model, *inputs):
    watch = ChannelWatch(model)
    with watch, torch.no_grad():
        for x in inputs:
            model(x)
    return watch.outputs


def dead(outputs):
    return {
        name: set(output.dead.nonzero().flatten().tolist())
        for name, output in outputs.items()
    }


@pytest.fixture(params=NORMS)
def resnet(request):
    model = ResNet(18, base_channels=8, norm_eval=False, **NORMS[request.param])
    model.init_weights()
    model.train()
    return model


def named(model, name):
    """A layer's name in a model with BN, where GN's begin with gn."""
    return name.replace('bn', 'gn') if hasattr(model, 'gn1') else name


def shift_of(model, name):
    """The parameter that shifts a layer: MimicNorm's is in its conv."""
    layer = model.get_submodule(named(model, name))
    if hasattr(layer, 'bias'):
        return layer.bias
    return model.get_submodule(name.replace('bn', 'conv')).bias


def test_planted_collapse_is_found_exactly(resnet):
    planted = {'bn1': {3}, 'layer1.0.bn1': {1, 2}, 'layer4.1.bn1': {0, 63}}
    x = torch.randn(4, 3, 64, 64)
    before = dead(watched(resnet, x))
    assert not all(before[named(resnet, name)] >= planted[name]
                   for name in planted)
    with torch.no_grad():
        for name, channels in planted.items():
            bias = shift_of(resnet, name)
            bias.data[sorted(channels)] = -1e4
    found = dead(watched(resnet, x))
    for name, channels in planted.items():
        assert found[named(resnet, name)] >= channels
    assert found[named(resnet, 'bn1')] == {3}


def test_agrees_with_brute_force(resnet):
    """Every ReLU's output, taken by hooks on the ReLUs of a ResNet."""
    seen = []
    handles = [
        module.register_forward_hook(lambda m, x, y: seen.append(y.clone()))
        for module in resnet.modules() if isinstance(module, nn.ReLU)
    ]
    outputs = watched(resnet, torch.randn(2, 3, 32, 32))
    for handle in handles:
        handle.remove()
    order = ['bn1'] + [
        f'layer{stage}.{block}.bn{norm}' for stage in range(1, 5)
        for block in range(2) for norm in (1, 2)
    ]
    assert len(seen) == len(order) == 17
    for name, y in zip(order, seen):
        brute = (y == 0).flatten(2).all(2).all(0)
        output = outputs[named(resnet, name)]
        assert torch.equal(output.dead, brute), name
        assert output.after_sum == name.endswith('bn2')
    for stage in (2, 3, 4):
        assert torch.equal(
            outputs[f'layer{stage}.0.downsample.1'].dead,
            outputs[named(resnet, f'layer{stage}.0.bn2')].dead)


def test_a_channel_that_lives_anywhere_is_alive():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(inplace=True)).eval()
    dark = torch.full((2, 3, 4, 4), -1.)
    lit = dark.clone()
    lit[1, 2, 3, 3] = 1
    assert dead(watched(model, dark)) == {'0': {0, 1, 2}}
    assert dead(watched(model, dark, lit, dark)) == {'0': {0, 1}}
    assert dead(watched(model, lit, dark[:0])) == {'0': {0, 1}}


def test_other_activations():

    class Model(nn.Module):

        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = map(nn.BatchNorm2d, [2] * 4)

        def forward(self, x):
            return (F.relu6(self.a(x)), nn.ReLU6(True)(self.b(x)),
                    F.leaky_relu(self.c(x)), torch.relu(self.d(x) * 2))

    found = watched(Model(), torch.randn(2, 2, 4, 4))
    assert set(found) == {'a', 'b'}
    mobile = MobileNetV2(norm_cfg=dict(type='BN'))
    mobile.eval()
    found = watched(mobile, torch.randn(1, 3, 64, 64))
    assert len(found) == 35  # Of 52: 17 bottlenecks are linear.
    assert not any('linear' in name for name in found)
    assert not any(output.after_sum for output in found.values())


def test_watching_changes_nothing():
    model = ResNet(18, base_channels=8, norm_eval=False)
    model.train()
    other, x = copy.deepcopy(model), torch.randn(2, 3, 32, 32)
    sum(y.sum() for y in model(x)).backward()
    with ChannelWatch(other):
        sum(y.sum() for y in other(x)).backward()
    for one, two in zip(model.parameters(), other.parameters()):
        assert torch.equal(one.grad, two.grad)
    assert not any(m._forward_hooks for m in other.modules())


def test_probability_that_a_channel_is_positive():
    norm = PSBatchNorm2d(5, alpha=0.25)
    norm.weight.data = torch.tensor([1., -0.5, 0.1, 0., 0.])
    norm.beta.data = torch.tensor([-0.25, 0.25, -0.65, 0., -0.3])
    expected = torch.tensor([0.5, 0.8413447, 3.167124e-5, 1., 0.]).double()
    torch.testing.assert_close(
        positive_probability(norm), expected, rtol=1e-4, atol=0)
    x = torch.randn(200000, 1).double()
    seen = (x * norm.weight[:3] + norm.bias[:3] > 0).double().mean(0)
    torch.testing.assert_close(
        seen, expected[:3], rtol=0.01, atol=1e-4)
    assert positive_probability(nn.BatchNorm2d(3, affine=False)) is None


# The hook


class Toy(nn.Module):
    """What MMEngine's Runner trains; its ReLU is closed from step 3 to 5."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.register_buffer('step', torch.zeros(()))

    def train_step(self, data, optim_wrapper):
        self.step += 1
        with torch.no_grad():
            self.bn.bias[0] = -100 if 3 <= self.step <= 5 else 0
        loss = F.relu(self.bn(self.conv(data))).mean()
        optim_wrapper.update_params(loss)
        return dict(loss=loss)


def run(work_dir, hook, epochs=2, **kwargs):
    data = torch.utils.data.DataLoader(
        torch.randn(8, 1, 4, 4), batch_size=2, num_workers=0)
    runner = Runner(
        Toy(), str(work_dir), train_dataloader=data,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        train_cfg=dict(by_epoch=True, max_epochs=epochs), custom_hooks=[hook],
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        experiment_name=work_dir.name + str(epochs), **kwargs)
    runner.train()
    return runner


def test_the_hook_logs_death_and_recovery(tmp_path):
    runner = run(tmp_path, dict(type='FilterCollapseHook', interval=3,
                                sample=1))
    history = read_history(tmp_path / HISTORY)
    assert [line['iter'] for line in history] == [1, 4, 7, 8]
    assert [line['layers']['bn']['dead'] for line in history] == [
        [], [0], [], []
    ]
    assert [line['died'] for line in history] == [0, 1, 0, 0]
    assert [line['came_back'] for line in history] == [0, 0, 1, 0]
    assert shares(history[1]) == {'dead': 0.25, 'bn': 0.25}
    logged = [
        json.loads(line)
        for line in next(tmp_path.glob('*/vis_data/scalars.json')
                         ).read_text().splitlines()
    ]
    assert [line.get('collapse/dead') for line in logged] == [
        0, 0, 0, 0.25, 0.25, 0.25, 0, 0
    ]
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert text.count('25% of the channels before a ReLU are dead') == 1
    assert not runner.model.bn._forward_hooks


def test_a_resumed_run_continues_the_history(tmp_path):
    hook = dict(type='FilterCollapseHook', interval=3, sample=1)
    run(tmp_path, hook, epochs=1)
    assert [line['iter'] for line in read_history(tmp_path / HISTORY)] == [
        1, 4
    ]
    with open(tmp_path / HISTORY, 'a') as file:
        file.write(json.dumps(dict(iter=6, layers={})) + '\n{"torn')
    run(tmp_path, hook, epochs=2, resume=True)
    history = read_history(tmp_path / HISTORY)
    assert [line['iter'] for line in history] == [1, 4, 7, 8]
    assert history[2]['came_back'] == 1


def test_several_steps_are_one_sample(tmp_path):
    run(tmp_path, dict(type='FilterCollapseHook', interval=4, sample=3))
    # Steps 1 to 3 and 5 to 8: alive in one of them is alive.
    history = read_history(tmp_path / HISTORY)
    assert [line['iter'] for line in history] == [3, 7]
    assert all(line['layers']['bn']['dead'] == [] for line in history)


@pytest.mark.parametrize('arguments', [
    dict(interval=0), dict(sample=0), dict(interval=2, sample=3),
    dict(warn_above=2)
])
def test_arguments_out_of_range(arguments):
    with pytest.raises(InputError, match='FilterCollapseHook'):
        FilterCollapseHook(**arguments)
