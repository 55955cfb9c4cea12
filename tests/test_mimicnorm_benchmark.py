"""benchmarks/mimicnorm: trained, resumed, and reported."""

import sys

import pytest
import torch
from helpers import ROOT, make_rows
from mmdet.models.backbones import ResNet
from mmengine.config import Config
from torch import nn

from benchmarks.mimicnorm import report, training
from benchmarks.mimicnorm.__main__ import main
from benchmarks.mimicnorm.correlation import (
    between_channels,
    between_images,
    correlations,
)
from benchmarks.mimicnorm.experiments import EXPERIMENTS, STUDY, Result, Settings
from benchmarks.mimicnorm.norms import NORMS
from benchmarks.shared.data import load
from benchmarks.shared.networks import Classifier
from benchmarks.shared.rows import Numbers
from benchmarks.shared.settings import Experiment, grid
from mmpsbn.compare.placing import replace_norm
from mmpsbn.layers import MimicConv


def convs_of(model):
    return [m for m in model.modules() if isinstance(m, MimicConv)]


@pytest.mark.slow
def test_trained_and_reported(tmp_path, monkeypatch, capsys):
    arguments = ['--data', 'digits', '--experiments', 'correlation', '--seeds', '1']
    arguments += ['--epochs', '1', '--processes', '1', '--results', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', ['mimicnorm', *arguments])
    main()
    assert '4 trainings are missing' in capsys.readouterr().out
    jobs = EXPERIMENTS['correlation'].jobs(Settings, 1, epochs=1)
    found = {job: own for job, (own,) in STUDY.read(tmp_path)['digits'].items()}
    assert found.keys() == {*jobs}
    assert all(len(own.images_after) == 16 for own in found.values())

    lines = (tmp_path / 'report.md').read_text().splitlines()
    cells = [line.strip('| ').split(' | ') for line in lines if line.startswith('| ')]
    for job, own in zip(jobs, cells[-4:], strict=True):
        assert own == [
            job.norm,
            *(
                f'{getattr(found[job], f"{measure}_{moment}")[-1]:.3f}'
                for measure in ('channels', 'images')
                for moment in ('before', 'after')
            ),
        ]
    assert (tmp_path / 'correlation.png').stat().st_size > 10000
    # The ablation has these trainings too, but misses others.
    assert not (tmp_path / 'ablation.png').exists()


def test_seeds_that_trained_are_counted():
    jobs = [
        Settings(seed, depth=depth, lr=lr, norm=norm)
        for seed in range(3)
        for depth in (4, 16)
        for norm in ('none', 'MimicNorm')
        for lr in (0.2, 0.01)
    ]

    def result(job):
        accuracy = 0.9 + 0.01 * job.seed + 0.02 * (job.lr < 0.1)
        failed = job.norm == 'none' and job.lr > 0.1 and job.seed < 2
        return Result(
            0.19 if failed and job.seed == 0 else accuracy,
            int(failed and job.seed == 1),
            *[Numbers(())] * 4,
            1.0,
        )

    experiment = Experiment(
        '', grid(depth=(4, 16), norm=('none', 'MimicNorm'), lr=(0.2, 0.01))
    )
    rows = report.make_rows(
        experiment, {job: [result(job)] for job in jobs}, report.Row
    )
    found = make_rows(report.table(rows, 'lr', ['depth']))
    assert found[0] == ['4', 'none', '**93.00 ± 2.48**', '67.33 ± 103.99 (1 of 3)']
    assert found[3] == ['16', 'MimicNorm', '**93.00 ± 2.48**', '91.00 ± 2.48']


def test_both_operations_are_where_the_package_places_them():
    cfg = Config.fromfile(
        ROOT / 'configs' / 'psbn' / 'faster-rcnn_r50_fpn_bn_1x_coco.py'
    )
    placed = replace_norm(cfg, 'MimicNorm').model
    mine = NORMS['MimicNorm']
    assert placed.backbone.conv_cfg == dict(type=mine.conv.__name__)
    assert placed.backbone.norm_cfg == dict(type=mine.norm.__name__)
    assert placed.roi_head.bbox_head.cls_predictor_cfg == dict(
        type=mine.linear.__name__
    )
    # Blocks as in the first stages of a ResNet-18, and so their scalars.
    layers = {name: placed.backbone[name] for name in ('conv_cfg', 'norm_cfg')}
    scalars = [
        [
            (conv.branch, conv.start)
            for conv in convs_of(model)
            if conv.scale is not None
        ]
        for model in (
            Classifier('resnet', 13, 1, 10, mine),
            ResNet(
                18,
                num_stages=3,
                strides=(1, 2, 2),
                dilations=(1, 1, 1),
                out_indices=(0, 1, 2),
                norm_eval=False,
                **layers,
            ),
        )
    ]
    assert len(scalars[0]) == 6 + 2 and scalars[0] == scalars[1]


def test_the_two_operations_are_all_that_differs():
    nets, images = {}, torch.rand(8, 1, 8, 8)
    for norm in ('none', 'weight mean', 'last BN', 'MimicNorm'):
        torch.manual_seed(0)
        nets[norm] = Classifier('conv', 4, 1, 10, NORMS[norm])
    for one, other in (('none', 'last BN'), ('weight mean', 'MimicNorm')):
        for mine, its in zip(*(convs_of(nets[n]) for n in (one, other))):
            assert mine.weight.equal(its.weight)
        assert nets[one].fc.weight.equal(nets[other].fc.weight)
        logits = nets[one](images)
        normalized = nn.functional.batch_norm(logits, None, None, training=True)
        torch.testing.assert_close(
            nets[other](images) - nets[other].fc.bias, normalized, atol=1e-4, rtol=1e-4
        )
    for mine, its in zip(*(convs_of(nets[n]) for n in ('none', 'weight mean'))):
        mean = mine.weight.mean((1, 2, 3), keepdim=True)
        assert mean.abs().max() > 1e-3
        torch.testing.assert_close(its.weight, mine.weight - mean)


def test_lr_follows_the_batch_and_epochs_stay(monkeypatch):
    found = {}

    def fit(net, data, optimizer, epochs, batch, augment):
        assert not augment
        found[batch] = optimizer.param_groups[0]['lr'], epochs

    monkeypatch.setattr(training, 'fit', fit)
    for batch in (1, 8, 32):
        result = training.train(Settings(0, batch=batch, lr=0.4, epochs=3), 'digits')
        assert result.diverged and not result.channels_after
    assert found == {1: (0.0125, 3), 8: (0.1, 3), 32: (0.4, 3)}


def test_correlations_of_what_is_known():
    x = torch.randn(64, 1, 4, 4, dtype=torch.float64)
    constant = torch.ones_like(x)
    assert between_channels(torch.cat([x, 2 - 3 * x, constant], 1)) == pytest.approx(1)
    assert between_channels(torch.cat([x, x.roll(1, 0), -x], 1)) == pytest.approx(
        1 / 3, abs=0.05
    )
    assert between_channels(constant) is None
    assert between_images(torch.cat([x[:1], 2 * x[:1], -x[:1]])) == pytest.approx(
        -1 / 3
    )


def test_correlations_are_seen_at_every_relu_and_change_nothing():
    images = load('digits', None, None).train_images[:256]
    found = {}
    for norm in ('BN', 'none', 'MimicNorm'):
        net = Classifier('conv', 16, 1, 10, NORMS[norm])
        before = {key: value.clone() for key, value in net.state_dict().items()}
        found[norm] = correlations(net, images)
        for key, value in net.state_dict().items():
            assert value.equal(before[key]), key
    # The paper's claim, at the start: all images look alike to a deep network
    # without norm layers, and not so if its filters are centered.
    last = {norm: own['images'][-1] for norm, own in found.items()}
    assert len(found['BN']['images']) == 16
    assert last['none'] > 0.75 and max(last['BN'], last['MimicNorm']) < 0.5
    block = Classifier('resnet', 13, 1, 10, NORMS['BN'])
    assert len(correlations(block, images)['channels']) == 13
    found = correlations(block, images * float('nan'))
    assert {measure: str(own) for measure, own in found.items()} == dict(
        channels=' '.join(['nan'] * 13), images=' '.join(['nan'] * 13)
    )
