"""Filter collapse: found exactly, and watched while a model trains."""

import copy
import csv
import json
import runpy
import sys

import mmcv
import pytest
import torch
from helpers import FASTER, MIMIC, ROOT, build, demo_config, images, run
from mmcv.cnn import ConvModule
from mmdet.models.backbones import Darknet, MobileNetV2, ResNet
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as F

from mmpsbn.analysis import ChannelWatch, positive_probability
from mmpsbn.analysis.detector import analyze
from mmpsbn.analysis.figures import draw_layers
from mmpsbn.analysis.report import Layer, table
from mmpsbn.analysis.rounds import IMAGES, PARAMETERS, Change, changes
from mmpsbn.checkpoints.reading import Checkpoint
from mmpsbn.cli.runner import build_runner
from mmpsbn.config.reading import load_config
from mmpsbn.errors import InputError
from mmpsbn.hooks.filter_collapse_hook import (
    HISTORY,
    FilterCollapseHook,
    combine_processes,
    read_history,
    shares,
)
from mmpsbn.layers import PSBatchNorm2d
from mmpsbn.registry import MODELS

NORMS = dict(
    BN=dict(norm_cfg=dict(type='BN')),
    SyncBN=dict(norm_cfg=dict(type='SyncBN')),
    psBN=dict(norm_cfg=dict(type='psBN')),
    psSyncBN=dict(norm_cfg=dict(type='psSyncBN')),
    GN=dict(norm_cfg=dict(type='GN', num_groups=4)),
    MimicNorm=MIMIC,
)


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
    assert not all(before[named(resnet, name)] >= planted[name] for name in planted)
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
        for module in resnet.modules()
        if isinstance(module, nn.ReLU)
    ]
    outputs = watched(resnet, torch.randn(2, 3, 32, 32))
    for handle in handles:
        handle.remove()
    order = ['bn1'] + [
        f'layer{stage}.{block}.bn{norm}'
        for stage in range(1, 5)
        for block in range(2)
        for norm in (1, 2)
    ]
    assert len(seen) == len(order) == 17
    for name, y in zip(order, seen):
        brute = (y == 0).flatten(2).all(2).all(0)
        output = outputs[named(resnet, name)]
        assert torch.equal(output.dead, brute), name
        assert output.after_sum == name.endswith('bn2')
    # The sums count once, not for the norm layers of shortcuts as well.
    assert len(outputs) == 17


def test_a_channel_that_lives_anywhere_is_alive():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(inplace=True)).eval()
    dark = torch.full((2, 3, 4, 4), -1.0)
    lit = dark.clone()
    lit[1, 2, 3, 3] = 1
    assert dead(watched(model, dark)) == {'0': {0, 1, 2}}
    assert dead(watched(model, dark, lit, dark)) == {'0': {0, 1}}
    assert dead(watched(model, lit, dark[:0])) == {'0': {0, 1}}


def test_a_sum_counts_once_in_tables_and_shares(digits):
    """A channel of layer2's first sum is dead; both summands are closed."""
    cfg = demo_config('faster-rcnn', 'psbn')
    model = build(cfg.model)
    block = model.backbone.layer2[0]
    state = dict(state_dict=model.state_dict())
    before = table(analyze(cfg, Checkpoint('a.pth', state), images(digits)[:1]))
    with torch.no_grad():
        for norm in (block.bn2, block.downsample[1]):
            norm.weight[5], norm.bias[5] = 0, -1
    state = dict(state_dict=model.state_dict())
    after = table(analyze(cfg, Checkpoint('a.pth', state), images(digits)[:1]))
    numbers = [int(rows[-1][4].split()[0]) for rows in (before, after)]
    assert numbers[1] == numbers[0] + 1


class Broadcast(nn.Module):
    """Adds norm layers of 1 and of 3 channels, in either order."""

    def __init__(self, first):
        super().__init__()
        self.one, self.three = nn.BatchNorm2d(1), nn.BatchNorm2d(3)
        self.first = first

    def forward(self, x):
        parts = dict(one=self.one(x[:, :1]), three=self.three(x))
        first = parts.pop(self.first)
        return F.relu(torch.add(first, other=parts.popitem()[1]))


@pytest.mark.parametrize('first', ['one', 'three'])
def test_a_sum_that_broadcasts_is_judged_by_the_layer_of_all_channels(first):
    model = Broadcast(first).eval()
    with torch.no_grad():
        model.three.bias.copy_(torch.tensor([0.0, -1e4, 0.0]))
    watch = ChannelWatch(model)
    with watch:
        model(torch.randn(2, 3, 4, 4))
    found = combine_processes(watch, torch.device('cpu'))
    assert dead(found) == {'three': {1}} and found['three'].after_sum


def test_other_activations():

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = map(nn.BatchNorm2d, [2] * 4)

        def forward(self, x):
            return (
                F.relu6(self.a(x)),
                nn.ReLU6(True)(self.b(x)),
                F.silu(self.c(x)),
                torch.relu(self.d(x) * 2),
            )

    found = watched(Model(), torch.randn(2, 2, 4, 4))
    assert set(found) == {'a', 'b'} and not any(o.leaky for o in found.values())
    mobile = MobileNetV2(norm_cfg=dict(type='BN'))
    mobile.eval()
    found = watched(mobile, torch.randn(1, 3, 64, 64))
    assert len(found) == 35  # Of 52: 17 bottlenecks are linear.
    assert not any('linear' in name for name in found)
    assert not any(output.after_sum for output in found.values())


@pytest.mark.parametrize('inplace', [False, True])
def test_under_leaky_relu_a_channel_is_dead_that_is_never_positive(inplace):
    conv = ConvModule(
        2,
        3,
        1,
        norm_cfg=dict(type='psBN'),
        act_cfg=dict(type='LeakyReLU', negative_slope=0.1, inplace=inplace),
    )
    conv.eval()
    with torch.no_grad():
        conv.bn.weight.copy_(torch.tensor([1.0, 0.0, 0.0]))
        conv.bn.bias.copy_(torch.tensor([0.0, -0.1, 0.0]))
    (output,) = watched(conv, torch.randn(2, 2, 4, 4)).values()
    assert output.dead.tolist() == [False, True, True]
    assert output.leaky and not output.after_sum
    darknet = Darknet(53, norm_eval=False)
    # The blocks add behind their Leaky ReLU, so no sum is judged.
    found = watched(darknet, torch.randn(1, 3, 64, 64))
    assert len(found) == 52 and not any(o.after_sum for o in found.values())


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
    norm.weight.data = torch.tensor([1.0, -0.5, 0.1, 0.0, 0.0])
    norm.bias.data = torch.tensor([0.0, 0.5, -0.4, 0.25, -0.05])
    expected = torch.tensor([0.5, 0.8413447, 3.167124e-5, 1.0, 0.0]).double()
    torch.testing.assert_close(positive_probability(norm), expected, rtol=1e-4, atol=0)
    x = torch.randn(200000, 1).double()
    seen = (x * norm.weight[:3] + norm.bias[:3] > 0).double().mean(0)
    torch.testing.assert_close(seen, expected[:3], rtol=0.01, atol=1e-4)
    assert positive_probability(nn.BatchNorm2d(3, affine=False)) is None


# The hook


class ReluToy(nn.Module):
    """What MMEngine's Runner trains; its ReLU is closed from step 3 to 5."""

    force = True

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.register_buffer('step', torch.zeros(()))

    def train_step(self, data, optim_wrapper):
        self.step += 1
        if self.force:
            with torch.no_grad():
                self.bn.bias[0] = -100 if 3 <= self.step <= 5 else 0
        loss = 1e-3 * F.relu(self.bn(self.conv(data))).mean()
        optim_wrapper.update_params(loss)
        return dict(loss=loss)


def train_toy(work_dir, hook, epochs=2, model=None, optim_wrapper=None, **kwargs):
    data = torch.utils.data.DataLoader(
        torch.randn(8, 1, 4, 4), batch_size=2, num_workers=0
    )
    runner = Runner(
        model or ReluToy(),
        str(work_dir),
        train_dataloader=data,
        optim_wrapper=optim_wrapper or dict(optimizer=dict(type='SGD', lr=0.01)),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        custom_hooks=[hook],
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        experiment_name=work_dir.name + str(epochs),
        **kwargs,
    )
    runner.train()
    return runner


def test_the_hook_logs_death_and_recovery(tmp_path):
    runner = train_toy(tmp_path, dict(type='FilterCollapseHook', interval=3, sample=1))
    history = read_history(tmp_path / HISTORY)
    assert [line['iter'] for line in history] == [1, 4, 7, 8]
    assert [line['layers']['bn']['dead'] for line in history] == [[], [0], [], []]
    assert [line['died'] for line in history] == [0, 1, 0, 0]
    assert [line['recovered'] for line in history] == [0, 0, 1, 0]
    assert shares(history[1]) == {'dead': 0.25, 'bn': 0.25}
    logged = [
        json.loads(line)
        for line in next(tmp_path.glob('*/vis_data/scalars.json'))
        .read_text()
        .splitlines()
    ]
    assert [line.get('collapse/dead') for line in logged] == [
        0,
        0,
        0,
        0.25,
        0.25,
        0.25,
        0,
        0,
    ]
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert text.count('25% of the channels before a ReLU are dead') == 1
    assert 'With a lower learning rate, fewer channels die' in text
    assert not runner.model.bn._forward_hooks


def test_the_hook_names_fixed_statistics(tmp_path):
    class Fixed(ReluToy):
        def train(self, mode=True):
            super().train(mode)
            self.bn.eval()

    hook = dict(type='FilterCollapseHook', interval=3, sample=1)
    train_toy(tmp_path, hook, model=Fixed())
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert 'With a lower learning rate, or norm_eval=False, fewer channels die' in text


@pytest.mark.parametrize('norm, alive', [('BN', False), ('psBN', True)])
def test_recovery_is_psbns_alone(norm, alive, tmp_path):
    torch.manual_seed(0)
    model = ReluToy()
    model.bn = MODELS.build(dict(type=norm, num_features=4))
    model.force = False
    with torch.no_grad():
        # Where the ReLU closes for good: gamma gone, the shift below 0.
        model.bn.weight[:2] = 1e-6
        model.bn.bias[:2] = -0.2
    train_toy(
        tmp_path,
        dict(type='FilterCollapseHook', interval=4, sample=1),
        epochs=10,
        model=model,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=1.0)),
    )
    history = read_history(tmp_path / HISTORY)
    assert history[0]['layers']['bn']['dead'] == [0, 1]
    assert history[-1]['layers']['bn']['dead'] == ([] if alive else [0, 1])
    assert sum(line['recovered'] for line in history) == 2 * alive


def test_a_resumed_run_continues_the_history(tmp_path):
    hook = dict(type='FilterCollapseHook', interval=3, sample=1)
    train_toy(tmp_path, hook, epochs=1)
    assert [line['iter'] for line in read_history(tmp_path / HISTORY)] == [1, 4]
    with open(tmp_path / HISTORY, 'a') as file:
        file.write(json.dumps(dict(iter=6, layers={})) + '\n{"torn')
    train_toy(tmp_path, hook, epochs=2, resume=True)
    history = read_history(tmp_path / HISTORY)
    assert [line['iter'] for line in history] == [1, 4, 7, 8]
    assert history[2]['recovered'] == 1


def test_several_steps_are_one_sample(tmp_path):
    train_toy(tmp_path, dict(type='FilterCollapseHook', interval=4, sample=3))
    # Steps 1 to 3 and 5 to 8: alive in one of them is alive.
    history = read_history(tmp_path / HISTORY)
    assert [line['iter'] for line in history] == [3, 7]
    assert all(line['layers']['bn']['dead'] == [] for line in history)


@pytest.mark.parametrize('hook', ['FilterCollapseHook', 'NormCheckHook'])
def test_a_step_that_fails_leaves_nothing_behind(hook, tmp_path):

    class Failing(ReluToy):
        fails = True

        def train_step(self, data, optim_wrapper):
            outputs = super().train_step(data, optim_wrapper)
            if self.fails and self.step == 2:
                raise RuntimeError('out of memory')
            return outputs

    model = Failing()
    if hook == 'NormCheckHook':
        model.step += 1
    hook = dict(type=hook)
    with pytest.raises(RuntimeError, match='out of memory'):
        train_toy(tmp_path, hook, model=model)
    assert not torch.overrides._get_current_function_mode_stack()
    assert not any(module._forward_hooks for module in model.modules())
    assert 'train_step' not in vars(model)
    model.fails = False
    train_toy(tmp_path, hook, model=model, epochs=1)


@pytest.mark.parametrize(
    'arguments',
    [dict(interval=0), dict(sample=0), dict(interval=2, sample=3), dict(warn_above=2)],
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(InputError, match='FilterCollapseHook'):
        FilterCollapseHook(**arguments)


# Checkpoints


def planted(cfg):
    """A BN detector with three channels that their parameters close."""
    model = build(cfg.model)
    with torch.no_grad():
        layer = model.backbone.layer2[1].bn1
        layer.weight[[4, 7]], layer.bias[[4, 7, 9]] = 1e-4, -1.0
        layer.weight[9] = 0.1
    return model


def test_a_checkpoint_is_analyzed(digits):
    cfg = demo_config('faster-rcnn', 'psbn')
    cfg.model.backbone.norm_cfg.type = 'BN'
    layers = analyze(
        cfg, Checkpoint('a.pth', planted(cfg).state_dict()), images(digits)
    )
    found = {layer.name: layer for layer in layers}
    layer = found['backbone.layer2.1.bn1']
    assert layer.dead == layer.rarely_positive == [4, 7, 9]
    assert layer.small_gamma == [4, 7] and not layer.after_sum
    assert layer.gamma[9] == pytest.approx(0.1) and layer.shift[9] == -1
    assert found['backbone.layer2.1.bn2'].after_sum
    rows = {row[0]: row for row in table(layers)}
    number = sum(
        len(layer.dead)
        for name, layer in found.items()
        if name.startswith('backbone.layer2') and not layer.after_sum
    )
    assert rows['backbone.layer2'][3] == f'{number} ({number / 128:.1%})'
    # zero_init_residual has set the gammas of two layers of 64 to 0.
    assert rows['backbone.layer2'][6] == f'{2 + 2 * 64} (40.6%)'
    assert rows['all'][2] == '2400'


def test_the_hook_and_the_command_find_the_same(digits, tmp_path):
    """With norm layers in evaluation mode, over the same 16 images."""
    cfg = load_config(FASTER, work_dir=str(tmp_path))
    cfg.model.backbone.update(
        norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True
    )
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = f'{digits}/'
        loader.update(num_workers=0, persistent_workers=False)
    cfg.val_evaluator.ann_file = f'{digits}/annotations/instances_val2017.json'
    state = dict(state_dict=planted(cfg).state_dict())
    torch.save(state, tmp_path / 'planted.pth')
    cfg.merge_from_dict(
        {
            'load_from': str(tmp_path / 'planted.pth'),
            'train_cfg.max_epochs': 1,
            'train_cfg.val_interval': 10,
            'optim_wrapper.optimizer.lr': 0.0,
            'custom_hooks': [dict(type='FilterCollapseHook', sample=2)],
        }
    )
    build_runner(cfg).train()
    (line,) = read_history(tmp_path / HISTORY)
    files = sorted(map(str, (digits / 'train2017').iterdir()))
    layers = analyze(cfg, Checkpoint('planted.pth', state), files)
    assert {layer.name: layer.dead for layer in layers if layer.judged} == {
        name: layer['dead'] for name, layer in line['layers'].items()
    }
    assert line['layers']['backbone.layer2.1.bn1']['dead'] == [4, 7, 9]


def test_mimicnorm_has_no_parameters_to_judge(digits):
    cfg = demo_config('retinanet')
    model = build(cfg.model)
    layers = analyze(cfg, Checkpoint('a.pth', model.state_dict()), images(digits)[:1])
    assert len(layers) == 20
    # The sums with the 3 shortcuts are judged for the other summand.
    assert {layer.name for layer in layers if not layer.judged} == {
        f'backbone.layer{stage}.0.downsample.1' for stage in (2, 3, 4)
    }
    assert table(layers)[-1][5:] == ['-', '-']


@pytest.mark.slow
def test_the_command_writes_tables_and_figures(digits, tmp_path):
    cfg = demo_config('faster-rcnn', 'psbn')
    for folder in ('a', 'b'):
        (tmp_path / folder).mkdir()
        torch.save(
            dict(state_dict=planted(cfg).state_dict()),
            tmp_path / folder / 'epoch_1.pth',
        )
    layers = {'backbone.bn1': dict(channels=4, dead=[1], after_sum=False)}
    (tmp_path / 'a' / HISTORY).write_text(
        json.dumps(dict(iter=1, layers=layers)) + '\n'
    )
    status, output = run(
        'tools/analyze_collapse.py',
        FASTER,
        tmp_path / 'a' / 'epoch_1.pth',
        tmp_path / 'b' / 'epoch_1.pth',
        '--images',
        digits / 'val2017',
        '--number',
        2,
        '--out',
        tmp_path / 'out',
        fresh=True,
    )
    assert status == 0, output
    assert 'dead after sum' in output and 'backbone.layer2' in output
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'collapse.csv',
        'collapse.json',
        'layers.png',
        'history.png',
        'plane_a_epoch_1.png',
        'plane_b_epoch_1.png',
        'rounds.csv',
        'rounds.png',
    }
    for path in (tmp_path / 'out').glob('*.png'):
        assert mmcv.imread(path).std() > 10
    content = json.loads((tmp_path / 'out' / 'collapse.json').read_text())
    assert set(content['checkpoints']) == {'a/epoch_1', 'b/epoch_1'}
    lines = (tmp_path / 'out' / 'collapse.csv').read_text().splitlines()
    assert len(lines) == 1 + 2 * 20


@pytest.mark.slow
def test_a_checkpoint_that_is_named_twice_is_analyzed_once(digits, tmp_path):
    cfg = demo_config('faster-rcnn', 'psbn')
    torch.save(dict(state_dict=build(cfg.model).state_dict()), tmp_path / 'x.pth')
    (tmp_path / 'link.pth').symlink_to(tmp_path / 'x.pth')
    status, output = run(
        'tools/analyze_collapse.py',
        FASTER,
        tmp_path / 'x.pth',
        f'{tmp_path}/./x.pth',
        tmp_path / 'link.pth',
        '--images',
        digits / 'val2017',
        '--number',
        1,
        '--out',
        tmp_path / 'out',
    )
    assert status == 0, output
    content = json.loads((tmp_path / 'out' / 'collapse.json').read_text())
    assert list(content['checkpoints']) == ['x']
    assert (tmp_path / 'out' / 'plane_x.png').is_file()


def test_the_command_says_that_a_model_has_no_relu(digits, tmp_path):
    config = tmp_path / 'swish.py'
    config.write_text(f"""_base_ = {str(ROOT / FASTER)!r}
model = dict(
    backbone=dict(
        _delete_=True, type='CSPDarknet', widen_factor=0.125,
        norm_cfg=dict(type='psBN')),
    neck=dict(in_channels=[32, 64, 128]))
""")
    torch.save(
        dict(state_dict=build(Config.fromfile(config).model).state_dict()),
        tmp_path / 'x.pth',
    )
    status, output = run(
        'tools/analyze_collapse.py',
        config,
        tmp_path / 'x.pth',
        '--images',
        digits / 'val2017',
        '--number',
        1,
        '--out',
        tmp_path / 'out',
    )
    assert status == 0 and 'figures.py' not in output, output
    assert 'No channel was judged dead or alive' in output
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'collapse.csv',
        'collapse.json',
    }


def test_a_layer_that_one_of_two_checkpoints_judges_is_drawn(tmp_path):
    """A mask head sees nothing in a checkpoint that detects nothing."""

    def layers(judged):
        return [
            Layer(name, 2, [1] * seen, seen, False, [], [], [], [])
            for name, seen in (('backbone.bn', True), ('mask.bn', judged))
        ]

    heights = set()
    of_a_backbone = layers(True)[:1]
    for first, second in (
        (layers(True), layers(True)),
        (layers(False), layers(True)),
        (layers(True), layers(False)),
        (of_a_backbone, layers(True)),
        (layers(True), of_a_backbone),
    ):
        file = str(tmp_path / 'layers.png')
        draw_layers(dict(a=first, b=second), file)
        heights.add(mmcv.imread(file).shape[0])
    assert len(heights) == 1  # Two rows in each.


@pytest.mark.parametrize(
    'paths, names',
    [
        (['a/x.pth'], ['x']),
        (['a/x.pth', 'a/y.pth'], ['x', 'y']),
        (['a/x.pth', 'b/x.pth'], ['a/x', 'b/x']),
        (['x.pth', 'b/x.pth'], ['x', 'b/x']),
        (['a/x.pth', 'a/x.ckpt'], ['x.pth', 'x.ckpt']),
        # Figures have _ for /.
        (
            ['a/x.pth', 'a_x.pth', 'b/x.pth', 'c/a_x.pth'],
            ['a/x.pth (1)', 'a_x.pth (2)', 'b/x.pth (3)', 'c/a_x.pth (4)'],
        ),
    ],
)
def test_checkpoints_have_different_short_names(paths, names):
    tool = runpy.run_path(str(ROOT / 'tools' / 'analyze_collapse.py'))
    assert tool['short_names'](paths) == names


# Successive trainings


def judged(name, dead, closed=(), after_sum=False, seen=True):
    return Layer(
        name, 8, list(dead), seen, after_sum, list(closed), [], [1.0] * 8, [0.0] * 8
    )


def test_changes_from_round_to_round():
    rounds = [
        [judged('a', [0, 1], [0]), judged('b', []), judged('mask', [4])],
        # A mask head is not judged where nothing was detected.
        [
            judged('a', [1, 2, 3], [0, 3]),
            judged('b', [7], [7]),
            judged('mask', [], seen=False),
            judged('sum', [1, 2], [1], True),
        ],
        [judged('a', [2]), judged('b', [7], [7]), judged('mask', [4])],
    ]
    assert changes(rounds, IMAGES) == [
        Change(24, 3, None, None),
        Change(16, 4, 3, 1),
        Change(24, 3, 0, 2),
    ]
    assert changes(rounds, PARAMETERS) == [
        Change(24, 1, None, None),
        Change(16, 3, 2, 0),
        Change(24, 1, 0, 2),
    ]


def analyze_here(monkeypatch, *arguments):
    """Run the command in this process."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, 'argv', ['analyze_collapse.py', *map(str, arguments)])
    runpy.run_path('tools/analyze_collapse.py', run_name='__main__')


@pytest.fixture
def successive(tmp_path):
    """Three work dirs, in which channels of a BN detector die and recover."""
    cfg = demo_config('faster-rcnn', 'psbn')
    cfg.model.backbone.norm_cfg.type = 'BN'
    torch.manual_seed(0)
    model = build(cfg.model)
    layer = model.backbone.layer2[1].bn1
    dirs = []
    for number, dead in enumerate(([3], [3, 4, 5], [5])):
        with torch.no_grad():
            layer.weight.fill_(1), layer.bias.fill_(0)
            layer.weight[dead], layer.bias[dead] = 0, -0.1
        dirs.append(tmp_path / f'round{number}')
        dirs[-1].mkdir()
        for epoch in (1, 2):  # The first is not the last: none is dead.
            state = model.state_dict()
            if epoch == 1:
                state['backbone.layer2.1.bn1.bias'] = torch.ones(64)
            torch.save(dict(state_dict=state), dirs[-1] / f'epoch_{epoch}.pth')
        (dirs[-1] / 'last_checkpoint').write_text(str(dirs[-1] / 'epoch_2.pth'))
        line = dict(channels=4, dead=[1], after_sum=False)
        (dirs[-1] / HISTORY).write_text(
            ''.join(
                json.dumps(dict(iter=step, layers=dict(a=line))) + '\n'
                for step in (1, 5)
            )
        )
    return dirs


def test_the_command_follows_a_model_across_rounds(
    successive, digits, tmp_path, monkeypatch, capsys
):
    tables = {}
    for number in (0, 2):
        out = tmp_path / f'out{number}'
        analyze_here(
            monkeypatch,
            FASTER,
            *successive,
            '--images',
            digits / 'val2017',
            '--number',
            number,
            '--out',
            out,
        )
        with open(out / 'rounds.csv') as file:
            tables[number] = list(csv.DictReader(file))
        assert mmcv.imread(out / 'rounds.png').std() > 10
    shown = capsys.readouterr().out
    assert 'round2/epoch_2' in shown
    keys = ('round', 'checkpoint', 'dead', 'newly_dead', 'recovered')
    by_parameters = [
        [row[key] for key in keys]
        for row in tables[0]
        if row['judged_by'] == PARAMETERS
    ]
    assert by_parameters == [
        ['1', 'round0/epoch_2', '1', '', ''],
        ['2', 'round1/epoch_2', '3', '2', '0'],
        ['3', 'round2/epoch_2', '1', '0', '2'],
    ]
    assert len(tables[0]) == 3 and 'dead by images' in shown
    assert tables[2][::2] == tables[0]
    dead = [int(row['dead']) for row in tables[2][1::2]]
    # Few images see other channels dead, too.
    assert dead[1] >= dead[0] + 1 and int(tables[2][3]['newly_dead']) >= 2
    assert not (tmp_path / 'out0' / 'layers.png').exists()


@pytest.mark.parametrize(
    'second, words',
    [
        ('missing', 'missing does not exist. Name a checkpoint file, or the work'),
        ('empty', 'has no checkpoint, because it contains no file epoch_N.pth'),
        ('torn', 'cannot be read: it is truncated'),
    ],
)
def test_work_dirs_without_a_checkpoint(second, words, refused, tmp_path):
    for name in ('first', 'empty', 'torn'):
        (tmp_path / name).mkdir()
    torch.save(dict(state_dict={}), tmp_path / 'first' / 'iter_5.pth')
    (tmp_path / 'torn' / 'epoch_1.pth').touch()
    message = refused(
        'tools/analyze_collapse.py',
        FASTER,
        tmp_path / 'first',
        tmp_path / second,
        '--number',
        0,
    )
    assert words in message


def test_rounds_in_the_order_of_a_shell(successive, monkeypatch, capsys):
    for number, folder in enumerate(successive):
        file = folder / 'epoch_2.pth'
        content = dict(torch.load(file), meta=dict(time=f'20261127_10000{number}'))
        torch.save(content, file)
    old = successive[0].parent / 'old.pth'  # As MMCV 1.x dates it.
    torch.save(dict(content, meta=dict(time='Wed Jun 17 10:00:00 2020')), old)
    analyze_here(monkeypatch, FASTER, old, *successive, '--number', 0)
    assert 'Warning' not in capsys.readouterr().out
    first, second, third = successive
    analyze_here(monkeypatch, FASTER, first, third, second, '--number', 0)
    warning = 'round1/epoch_2 was written before round2/epoch_2'
    assert warning in capsys.readouterr().out


def test_classes_change_between_rounds(successive, monkeypatch, capsys):
    state = torch.load(successive[1] / 'epoch_2.pth')['state_dict']
    for key in [key for key in state if 'fc_cls' in key or 'fc_reg' in key]:
        state[key] = state[key][:6]
    torch.save(dict(state_dict=state), successive[1] / 'epoch_2.pth')
    analyze_here(monkeypatch, FASTER, *successive, '--number', 0)
    rounds = capsys.readouterr().out.split('Dead channels by round')[1]
    columns = [line.split() for line in rounds.splitlines() if '/epoch_2' in line]
    assert [words[-2:] for words in columns] == [['-', '-'], ['2', '0'], ['0', '2']]


def test_models_that_differ_between_rounds(successive, refused, tmp_path):
    cfg = demo_config('faster-rcnn', 'psbn')
    cfg.model.backbone.norm_cfg = dict(type='GN', num_groups=4)
    torch.save(dict(state_dict=build(cfg.model).state_dict()), tmp_path / 'gn.pth')
    message = refused(
        'tools/analyze_collapse.py',
        FASTER,
        successive[0],
        tmp_path / 'gn.pth',
        '--number',
        0,
    )
    assert 'does not fit the model' in message
    assert f'so each of them must fit {FASTER}. Analyze this one' in message


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(checkpoint='missing.pth'), 'does not exist'),
        (dict(images='empty'), 'has no image'),
        (dict(out='file'), 'cannot be written'),
    ],
)
def test_the_command_refuses(change, words, refused, digits, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file').touch()
    cfg = demo_config('faster-rcnn', 'psbn')
    torch.save(dict(state_dict=build(cfg.model).state_dict()), tmp_path / 'a.pth')
    given = dict(checkpoint='a.pth', images=digits / 'val2017', out='out')
    given.update(change)
    message = refused(
        'tools/analyze_collapse.py',
        FASTER,
        tmp_path / given['checkpoint'],
        '--images',
        tmp_path / given['images'],
        '--number',
        1,
        '--out',
        tmp_path / given['out'],
    )
    assert words in message


def test_a_model_without_norm_layers(digits):
    cfg = demo_config('faster-rcnn', 'psbn')
    cfg.model.backbone = dict(
        type='SSDVGG',
        depth=11,
        with_last_pool=False,
        ceil_mode=True,
        out_indices=(3, 4),
        out_feature_indices=(12, 14),
    )
    cfg.model.neck = None
    with pytest.raises(InputError, match='no norm layer'):
        analyze(cfg, Checkpoint('a.pth', build(cfg.model).state_dict()), images(digits))
