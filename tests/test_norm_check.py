"""What is said of the norm layers at the start of a training."""

import math
import runpy
import sys
from pathlib import Path

import mmdet
import mmengine.optim
import pytest
import torch
from helpers import FASTER, ROOT, Toy, toy_runner
from mmcv.cnn.bricks import Swish
from mmdet.models.dense_heads import RetinaHead, RetinaSepBNHead
from mmdet.utils import register_all_modules
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.nn import functional as F

from mmpsbn.analysis.collapse import keeps_statistics
from mmpsbn.hooks import LevelWatch, find_idle_norms
from mmpsbn.hooks.recovery import (
    StartingLayer,
    decay_of_schedule,
    describe_start,
    starting_table,
)
from mmpsbn.layers import MimicConv, PSBatchNorm2d, PSSyncBatchNorm
from mmpsbn.models import LastBNRetinaHead


def reasons(*norms, weight_decay=1e-4):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *norms)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=weight_decay)
    return find_idle_norms(model, OptimWrapper(optimizer))


def test_nothing_is_said_of_layers_that_work():
    frozen = PSBatchNorm2d(4).eval().requires_grad_(False)
    assert reasons(PSBatchNorm2d(4), frozen, nn.BatchNorm2d(4)) == []
    assert reasons(nn.SyncBatchNorm(4), nn.SyncBatchNorm(4).eval()) == []
    # Stock BN without effect is nobody's surprise.
    assert reasons(nn.BatchNorm2d(4).eval(), weight_decay=0) == []


def test_norm_eval_is_reported_for_psbn_and_syncbn():
    for norm in (PSBatchNorm2d(4), nn.SyncBatchNorm(4)):
        (reason,) = reasons(norm.eval())
        assert 'evaluation mode' in reason
        # Both can be the cause.
        assert 'norm_eval=False' in reason and 'frozen_stages' in reason
    assert len(reasons(PSSyncBatchNorm(4).eval())) == 2


def test_frozen_psbn_is_reported():
    (reason,) = reasons(PSBatchNorm2d(4).requires_grad_(False))
    assert 'frozen' in reason and 'requires_grad=True' in reason


def test_psbn_without_decay_is_reported():
    (reason,) = reasons(PSBatchNorm2d(4), weight_decay=0)
    assert 'weight decay' in reason and 'norm_decay_mult' in reason


def test_psbn_with_decay_in_some_layers_is_reported():
    # `custom_keys=dict(bn=dict(decay_mult=0))` finds no layer of `downsample`.
    model = nn.Sequential(PSBatchNorm2d(4), PSBatchNorm2d(4))
    spared, others = (list(part.parameters()) for part in model)
    groups = [dict(params=spared, weight_decay=0), dict(params=others)]
    optimizer = torch.optim.SGD(groups, 0.1, weight_decay=1e-4)
    (reason,) = find_idle_norms(model, OptimWrapper(optimizer))
    assert reason.startswith('1 of 2 psBN layers') and 'custom_keys' in reason


def test_several_optimizers():
    model = nn.Sequential(PSBatchNorm2d(4), nn.Conv2d(4, 4, 1))
    for decay, number in ((0, 1), (1e-4, 0)):
        wrapper = OptimWrapperDict(
            **{
                name: OptimWrapper(
                    torch.optim.SGD(part.parameters(), 0.1, weight_decay=decay)
                )
                for name, part in zip('ab', model)
            }
        )
        assert len(find_idle_norms(model, wrapper)) == number


FEATURES = [torch.randn(2, 8, size, size) for size in (13, 7, 4)]


@pytest.mark.parametrize('norm', ['BN', 'psBN', 'psSyncBN'])
def test_a_head_that_levels_share_is_reported(norm):
    register_all_modules()
    settings = dict(
        num_classes=3,
        in_channels=8,
        feat_channels=8,
        stacked_convs=1,
        norm_cfg=dict(type=norm),
    )
    shared = RetinaHead(**settings)
    watch = LevelWatch(shared)
    shared(FEATURES)
    assert watch.end() == ['cls_convs.0.bn', 'reg_convs.0.bn']
    apart = RetinaSepBNHead(num_ins=3, **settings)
    watch = LevelWatch(apart)
    apart(FEATURES)
    assert watch.end() == []


def test_one_level_and_frozen_statistics_are_not_reported():
    model = nn.Sequential(
        nn.BatchNorm2d(8),
        nn.BatchNorm2d(8).eval(),
        nn.BatchNorm2d(8, track_running_stats=False),
    )
    watch = LevelWatch(model[:1])
    model(FEATURES[0])
    model(FEATURES[0][:0])  # As a head without RoIs has it.
    model(FEATURES[0][..., :-1])
    assert watch.end() == []
    watch = LevelWatch(model[1:])
    for feature in FEATURES:
        model(feature)
    assert watch.end() == []


@pytest.mark.parametrize(
    'asked, found, said',
    [
        ('psBN', PSBatchNorm2d, False),
        ('psBN', nn.BatchNorm2d, True),
        ('mmpsbn.psSyncBN', nn.BatchNorm2d, True),
        ('BN', nn.BatchNorm2d, False),
    ],
)
def test_psbn_that_was_converted_away_is_reported(asked, found, said, tmp_path, caplog):
    runner = toy_runner(
        tmp_path / 'run',
        Toy(found),
        epochs=1,
        custom_hooks=[dict(type='mmpsbn.NormCheckHook')],
    )
    runner.cfg.model = dict(backbone=dict(norm_cfg=dict(type=asked)))
    with caplog.at_level('WARNING', logger=runner.logger.name):
        runner.logger.addHandler(caplog.handler)
        runner.train()
    text = f'the config sets {asked.split(".")[-1]}, but the model has no'
    assert (text in caplog.text) == said


@pytest.mark.parametrize(
    'body, kind, said',
    [
        (MimicConv, RetinaHead, True),
        (MimicConv, LastBNRetinaHead, False),
        (nn.Conv2d, RetinaHead, False),
    ],
)
def test_mimicnorm_without_its_last_bn_is_reported(body, kind, said, tmp_path, caplog):
    register_all_modules()
    model = Toy()
    model.body.append(body(4, 4, 1))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model.bbox_head = kind(num_classes=3, in_channels=8, feat_channels=8)
    runner = toy_runner(
        tmp_path / 'run', model, epochs=1, custom_hooks=[dict(type='NormCheckHook')]
    )
    with caplog.at_level('WARNING', logger=runner.logger.name):
        runner.logger.addHandler(caplog.handler)
        runner.train()
    words = 'MimicNorm has no last BN in bbox_head (RetinaHead)'
    assert (words in caplog.text) == said
    assert ('The types LastBN' in caplog.text) == said


def test_an_optimizer_of_copies_is_reported():
    model = PSBatchNorm2d(4)
    copies = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    wrapper = OptimWrapper(torch.optim.SGD(copies, 0.1, weight_decay=0.1))
    (reason,) = find_idle_norms(model, wrapper)
    assert 'trained as plain BN' in reason


# D, and what a training can recover


class Recorder(Hook):
    """Records D as it is at the start, and the steps of the optimizer."""

    def __init__(self):
        self.expected, self.steps = None, []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.expected is not None:
            return
        optimizer = runner.optim_wrapper.optimizer
        decays = decay_of_schedule(runner)
        self.expected = [
            decays[id(group['params'][0])] for group in optimizer.param_groups
        ]
        optimizer.register_step_pre_hook(
            lambda *_: self.steps.append(
                [
                    group['lr'] * group['weight_decay'] / (1 - group['momentum'])
                    for group in optimizer.param_groups
                ]
            )
        )


WARM_UP = dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=3)


def train(
    work_dir,
    hooks,
    model=None,
    epochs=5,
    by_epoch=True,
    resume=False,
    schedulers=(),
    **wrapper,
):
    torch.manual_seed(0)
    loop = (
        dict(by_epoch=True, max_epochs=epochs)
        if by_epoch
        else dict(by_epoch=False, max_iters=4 * epochs)
    )
    runner = Runner(
        model or Net(),
        str(work_dir),
        resume=resume,
        train_dataloader=torch.utils.data.DataLoader(
            torch.randn(8 if by_epoch else 40, 3, 4, 4), batch_size=2, num_workers=0
        ),
        train_cfg=loop,
        param_scheduler=list(schedulers) or None,
        optim_wrapper=dict(
            optimizer=dict(type='SGD', lr=0.2, momentum=0.5, weight_decay=0.1),
            **wrapper,
        ),
        custom_hooks=hooks,
        randomness=dict(seed=0),
        experiment_name=f'{work_dir.parent.name}-{work_dir.name}{epochs}',
    )
    runner.train()
    return runner


class Net(nn.Module):
    """An activation follows bn directly, and a ReLU follows last behind a sum."""

    def __init__(self, norm=nn.BatchNorm2d, activate=F.relu):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 1), norm(8)
        self.second, self.last = nn.Conv2d(8, 8, 1), norm(8)
        self.activate = activate

    def train_step(self, data, optim_wrapper):
        x = self.activate(self.bn(self.conv(data)))
        loss = 1e-3 * F.relu(x + self.last(self.second(x))).mean()
        optim_wrapper.update_params(loss)
        return dict(loss=loss)


@pytest.mark.parametrize(
    'settings',
    [
        dict(schedulers=[WARM_UP, dict(type='MultiStepLR', milestones=[2, 4])]),
        dict(
            by_epoch=False,
            schedulers=[
                WARM_UP,
                dict(type='CosineAnnealingLR', by_epoch=False, begin=3, T_max=17),
                dict(type='LinearMomentum', start_factor=0.5, by_epoch=False, end=9),
            ],
        ),
        # A loop by iterations ends no epoch but the last.
        dict(by_epoch=False, schedulers=[dict(type='StepLR', step_size=1)]),
        dict(accumulative_counts=3, schedulers=[WARM_UP]),
        dict(
            schedulers=[
                dict(type='OneCycleLR', eta_max=0.4, total_steps=20, by_epoch=False)
            ]
        ),
        dict(),
    ],
)
def test_d_is_that_of_the_steps_to_come(settings, tmp_path):
    recorder = Recorder()
    train(
        tmp_path,
        [recorder],
        paramwise_cfg=dict(
            norm_decay_mult=0.5, custom_keys=dict(second=dict(lr_mult=0.1))
        ),
        **settings,
    )
    sums = [math.fsum(rates) for rates in zip(*recorder.steps)]
    assert len(set(recorder.expected)) > 1  # Of several groups.
    assert recorder.expected == pytest.approx(sums, rel=1e-9)
    assert len(recorder.steps) == (7 if 'accumulative_counts' in settings else 20)


def test_d_of_a_resumed_run_is_of_what_is_left(tmp_path):
    schedulers = [WARM_UP, dict(type='ExponentialLR', gamma=0.5)]
    train(tmp_path, [], epochs=3, schedulers=schedulers)
    recorder = Recorder()
    train(tmp_path, [recorder], resume=True, schedulers=schedulers)
    assert len(recorder.steps) == 8
    assert recorder.expected == pytest.approx(
        [math.fsum(rates) for rates in zip(*recorder.steps)], rel=1e-9
    )


@pytest.mark.parametrize(
    'optimizer',
    [
        dict(type='SGD', lr=0.01, weight_decay=0.05, momentum=0.9),
        dict(type='SGD', lr=0.01, weight_decay=0.5, momentum=0.9, dampening=0.9),
        dict(type='SGD', lr=0.01, weight_decay=0.5),
        dict(type='AdamW', lr=0.01, weight_decay=0.5),
    ],
)
def test_beta_shrinks_by_d(optimizer, tmp_path):
    settings = dict(optimizer)
    layer = PSBatchNorm2d(2)
    layer.bias.data.fill_(-0.9)  # beta = -1
    own = getattr(torch.optim, settings.pop('type'))(layer.parameters(), **settings)
    runner = toy_runner(tmp_path / 'run', Toy())
    runner.optim_wrapper = OptimWrapper(own)
    runner.train_loop._max_iters = 400
    expected = decay_of_schedule(runner)[id(layer.bias)]
    for _ in range(400):
        layer.bias.grad = torch.zeros(2)
        own.step()
    assert 1 < expected < 3
    torch.testing.assert_close(
        layer.bias - layer.alpha,
        torch.full((2,), -math.exp(-expected)),
        rtol=0.1,
        atol=0,
    )


def test_d_that_is_not_known(tmp_path):

    class Own(mmengine.optim.ConstantLR):
        """May do more in a step than set the learning rate."""

        def step(self):
            self.steps = getattr(self, 'steps', 0) + 1
            super().step()

    runner = toy_runner(tmp_path / 'run', Toy())
    bias = id(runner.model.body[1].bias)
    assert decay_of_schedule(runner)[bias] > 0
    own = Own(runner.optim_wrapper)
    runner.param_schedulers = [own]
    assert math.isnan(decay_of_schedule(runner)[bias]) and own.steps == 1
    runner.param_schedulers = []
    runner.optim_wrapper = OptimWrapper(
        torch.optim.Adam(runner.model.parameters(), weight_decay=0.1)
    )
    assert math.isnan(decay_of_schedule(runner)[bias])
    runner.optim_wrapper = OptimWrapper(torch.optim.Adam(runner.model.parameters()))
    assert decay_of_schedule(runner)[bias] == 0


LOG_4, LOG_5 = math.log(4), math.log(5)


def start(
    kind='BN',
    alpha=0.1,
    decay=LOG_4,
    frozen=False,
    fixed=False,
    dead=(1, 1, 0),
    beta=(-0.39, -0.41, 1.0),
):
    return StartingLayer(
        kind, alpha, decay, frozen, fixed, torch.tensor(dead).bool(), torch.tensor(beta)
    )


def test_the_table_counts_what_is_within_reach():
    layers = [
        start(),
        start(decay=LOG_5),
        start('psBN'),
        start('psBN', alpha=0.2),
        start(frozen=True),
        start(alpha=math.nan, fixed=True),
        start(alpha=math.nan, frozen=True, fixed=True),
        start('GN', alpha=math.nan),
        start('IN', decay=math.nan),
    ]
    assert starting_table(layers)[1:] == [
        ['BN', '2', '6', '4 (66.7%)', '1.4 to 1.6', '|beta| < 0.4 to 0.5', '3'],
        ['psBN', '2', '6', '4 (66.7%)', '1.4', '|beta| < 0.4 to 0.8', '3'],
        ['BN (frozen)', '1', '3', '2 (66.7%)', '-', '-', '-'],
        ['BN (fixed statistics)', '1', '3', '2 (66.7%)', '1.4', '-', '-'],
        ['BN (frozen, fixed statistics)', '1', '3', '2 (66.7%)', '-', '-', '-'],
        ['GN', '1', '3', '2 (66.7%)', '1.4', '-', '-'],
        ['IN', '1', '3', '2 (66.7%)', 'unknown', '-', '-'],
    ]
    assert 'no dead channel of BN' in describe_start(layers, 9)
    assert 'no dead channel of BN' not in describe_start(layers[2:4], 9)
    assert 'count them on images' in describe_start(layers, 9)
    assert 'count them on images' not in describe_start(layers[:5], 9)
    assert 'no dead channel of BN' not in describe_start(layers[4:7], 9)


def test_fixed_statistics_are_named_at_the_start(tmp_path):
    """As ``norm_eval=True`` of MMDetection's backbones fixes them."""

    class Fixed(Net):
        def train(self, mode=True):
            super().train(mode)
            self.bn.eval()

    train(tmp_path, [dict(type='NormCheckHook')], Fixed(), epochs=1)
    text = log_of(tmp_path)
    assert row_of(text, 'BN (fixed statistics)')[4:8] == ['8', '0', '(0.0%)', '0.16']
    assert 'count them on images with tools/analyze_collapse.py' in text


def test_the_filters_of_frozen_stages_are_fixed_too():
    model = Net()
    assert not keeps_statistics(model, 'bn')
    model.bn.eval()
    assert keeps_statistics(model, 'bn') and not keeps_statistics(model, 'last')
    model.conv.requires_grad_(False)
    model.second.requires_grad_(False)
    assert not keeps_statistics(model, 'bn')


def log_of(work_dir):
    return max(work_dir.glob('*/*.log')).read_text()


def row_of(text, kind):
    (row,) = [line.split() for line in text.splitlines() if line.startswith(f'{kind} ')]
    return row


@pytest.mark.parametrize('norm', [nn.BatchNorm2d, PSBatchNorm2d])
def test_the_hook_reports_and_changes_nothing(norm, tmp_path):
    torch.manual_seed(0)
    weights = Net(norm).state_dict()
    weights['bn.weight'][:4] = torch.tensor([1e-6, 0.0, 0.01, -0.01])
    weights['bn.bias'][:4] = torch.tensor([-0.1, 0.0, -5.0, 0.0])
    # Not judged: a residual sum comes before the ReLU.
    weights['last.weight'].zero_()
    states = []
    for name, hooks in (('with', [dict(type='NormCheckHook')]), ('without', [])):
        model = Net(norm)
        model.load_state_dict(weights)
        train(tmp_path / name, hooks, model)
        states.append((model.state_dict(), torch.get_rng_state()))
    for key, value in states[0][0].items():
        assert torch.equal(value, states[1][0][key])
    assert torch.equal(states[0][1], states[1][1])
    text = log_of(tmp_path / 'with')
    kind = 'BN' if norm is nn.BatchNorm2d else 'psBN'
    # The fourth channel is open half the time. D is 20 steps of 0.04.
    dead = ['3', '(37.5%)', '0.8', '|beta|', '<', '0.22']
    assert row_of(text, kind)[:-1] == [kind, '1', '8', *dead]
    assert 'at the start of these 20 iterations' in text
    assert ('no dead channel of BN' in text) == (kind == 'BN')
    assert ('beta is then the shift of BN minus alpha' in text) == (kind == 'BN')


def report(work_dir, activate, **kwargs):
    model = Net(activate=activate, **kwargs)
    with torch.no_grad():
        model.bn.weight[0], model.bn.bias[0] = 0, -0.1
    train(work_dir, [dict(type='NormCheckHook')], model, epochs=1)
    return log_of(work_dir)


def test_nothing_is_said_of_recovery_behind_leaky_relu(tmp_path):
    text = report(tmp_path, nn.LeakyReLU(0.1))
    row = ['BN,', 'Leaky', 'ReLU', '1', '8', '1', '(12.5%)', '0.16', '-', '-']
    assert row_of(text, 'BN,') == row
    assert (
        'no dead channel of BN' not in text and 'Filter collapse concerns' not in text
    )


@pytest.mark.parametrize(
    'activation', [Swish, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish, nn.ELU]
)
def test_activations_that_are_no_rectifiers_are_reported(activation, tmp_path):
    text = report(tmp_path, activation())
    name = activation.__name__
    said = f'follows: 1 of 2 in this model. It also has {name}, which closes no'
    assert said in text


@pytest.mark.parametrize('activation', [nn.ReLU, nn.ReLU6, nn.PReLU, nn.Tanh])
def test_nothing_is_said_of_rectifiers_and_unknown_activations(activation, tmp_path):
    assert 'Filter collapse concerns' not in report(tmp_path, activation())


def test_layer_norm_and_gelu_are_reported(tmp_path):
    """As in Swin, where no batch norm is."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(4), nn.Linear(4, 1)

        def train_step(self, data, optim_wrapper):
            loss = F.gelu(self.linear(self.norm(data))).sigmoid().mean()
            optim_wrapper.update_params(loss)
            return dict(loss=loss)

    train(tmp_path, [dict(type='NormCheckHook')], Tokens(), epochs=1)
    assert 'follows: 0 of 1 in this model. It also has GELU,' in log_of(tmp_path)


def test_mmdetections_own_command_reports(digits, tmp_path, monkeypatch):
    """The config has all that it needs: an import and a hook."""
    config = tmp_path / 'config.py'
    config.write_text(f"""_base_ = {str(ROOT / FASTER)!r}
custom_imports = dict(imports=['mmpsbn'], allow_failed_imports=False)
custom_hooks = [dict(type='NormCheckHook')]
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2,
                 val_interval=10)
train_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False)
val_dataloader = dict(dataset=dict(indices=1), num_workers=0,
                      persistent_workers=False)
""")
    monkeypatch.setenv('MMDET_DATASETS', str(digits))
    monkeypatch.setattr(
        sys, 'argv', ['train.py', str(config), '--work-dir', str(tmp_path / 'work')]
    )
    command = Path(mmdet.__file__).parent / '.mim' / 'tools' / 'train.py'
    runpy.run_path(str(command), run_name='__main__')
    text = log_of(tmp_path / 'work')
    assert 'at the start of these 2 iterations' in text
    assert row_of(text, 'psBN')[:3] == ['psBN', '9', '992']
