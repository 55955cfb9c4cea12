"""Warnings of norm layers that cannot do their work."""

import pytest
import torch
from mmdet.models.dense_heads import RetinaHead, RetinaSepBNHead
from mmdet.utils import register_all_modules
from mmengine.optim import OptimWrapper, OptimWrapperDict
from test_checkpoint import Toy, toy_runner
from torch import nn

from mmpsbn.engine import LevelWatch, find_idle_norms
from mmpsbn.layers import PSBatchNorm2d, PSSyncBatchNorm


def reasons(*norms, weight_decay=1e-4):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *norms)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, weight_decay=weight_decay)
    return find_idle_norms(model, OptimWrapper(optimizer))


def test_nothing_is_said_of_layers_that_work():
    frozen = PSBatchNorm2d(4).eval().requires_grad_(False)
    assert reasons(PSBatchNorm2d(4), frozen, nn.BatchNorm2d(4)) == []
    assert reasons(nn.SyncBatchNorm(4), nn.SyncBatchNorm(4).eval()) == []
    # Stock BN without effect is nobody's surprise.
    assert reasons(nn.BatchNorm2d(4).eval(), weight_decay=0) == []


def test_norm_eval_is_reported_for_psbn_and_syncbn():
    for norm in (PSBatchNorm2d(4), nn.SyncBatchNorm(4)):
        reason, = reasons(norm.eval())
        assert 'evaluation mode' in reason and 'norm_eval=False' in reason
    assert len(reasons(PSSyncBatchNorm(4).eval())) == 2


def test_frozen_psbn_is_reported():
    reason, = reasons(PSBatchNorm2d(4).requires_grad_(False))
    assert 'frozen' in reason and 'requires_grad=True' in reason


def test_psbn_without_decay_is_reported():
    reason, = reasons(PSBatchNorm2d(4), weight_decay=0)
    assert 'weight decay' in reason and 'norm_decay_mult' in reason


def test_several_optimizers():
    model = nn.Sequential(PSBatchNorm2d(4), nn.Conv2d(4, 4, 1))
    for decay, number in ((0, 1), (1e-4, 0)):
        wrapper = OptimWrapperDict(**{
            name: OptimWrapper(
                torch.optim.SGD(part.parameters(), 0.1, weight_decay=decay))
            for name, part in zip('ab', model)
        })
        assert len(find_idle_norms(model, wrapper)) == number


FEATURES = [torch.randn(2, 8, size, size) for size in (13, 7, 4)]


@pytest.mark.parametrize('norm', ['BN', 'psBN', 'psSyncBN'])
def test_a_head_that_levels_share_is_reported(norm):
    register_all_modules()
    settings = dict(num_classes=3, in_channels=8, feat_channels=8,
                    stacked_convs=1, norm_cfg=dict(type=norm))
    shared = RetinaHead(**settings)
    watch = LevelWatch(shared)
    shared(FEATURES)
    assert watch.end() == ['cls_convs.0.bn', 'reg_convs.0.bn']
    apart = RetinaSepBNHead(num_ins=3, **settings)
    watch = LevelWatch(apart)
    apart(FEATURES)
    assert watch.end() == []


def test_one_level_and_frozen_statistics_are_not_reported():
    model = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(8).eval(),
                          nn.BatchNorm2d(8, track_running_stats=False))
    watch = LevelWatch(model[:1])
    model(FEATURES[0])
    model(FEATURES[0][:0])  # As a head without RoIs has it.
    model(FEATURES[0][..., :-1])
    assert watch.end() == []
    watch = LevelWatch(model[1:])
    for feature in FEATURES:
        model(feature)
    assert watch.end() == []


@pytest.mark.parametrize('asked, found, said', [
    ('psBN', PSBatchNorm2d, False), ('psBN', nn.BatchNorm2d, True),
    ('mmpsbn.psSyncBN', nn.BatchNorm2d, True), ('BN', nn.BatchNorm2d, False)
])
def test_psbn_that_was_converted_away_is_reported(asked, found, said, tmp_path,
                                                  caplog):
    runner = toy_runner(tmp_path / 'run', Toy(found), epochs=1,
                        custom_hooks=[dict(type='mmpsbn.NormCheckHook')])
    runner.cfg.model = dict(backbone=dict(norm_cfg=dict(type=asked)))
    with caplog.at_level('WARNING', logger=runner.logger.name):
        runner.logger.addHandler(caplog.handler)
        runner.train()
    text = f"the config asks for {asked.split('.')[-1]}, and the model has no"
    assert (text in caplog.text) == said


def test_an_optimizer_of_copies_is_reported():
    model = PSBatchNorm2d(4)
    copies = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    wrapper = OptimWrapper(torch.optim.SGD(copies, 0.1, weight_decay=0.1))
    reason, = find_idle_norms(model, wrapper)
    assert 'trained as plain BN' in reason
