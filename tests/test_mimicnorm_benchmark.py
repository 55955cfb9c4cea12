"""benchmarks/mimicnorm: trained, resumed, and reported."""

import json
import sys

import pytest
import torch
from helpers import ROOT, make_rows, untimed
from mmdet.models.backbones import ResNet
from mmengine.config import Config
from torch import nn

from benchmarks import memory
from benchmarks.mimicnorm import report, training
from benchmarks.mimicnorm.__main__ import main
from benchmarks.mimicnorm.correlation import (
    between_channels,
    between_images,
    correlations,
)
from benchmarks.mimicnorm.experiments import EXPERIMENTS, Settings, settings
from benchmarks.mimicnorm.norms import NORMS
from benchmarks.shared.data import load
from benchmarks.shared.memory import largest_batch
from benchmarks.shared.networks import Classifier
from benchmarks.shared.settings import Experiment, grid, key_of, tree_of
from mmpsbn.analysis import saved_bytes
from mmpsbn.compare.placing import replace_norm
from mmpsbn.layers import MimicConv


def convs_of(model):
    return [m for m in model.modules() if isinstance(m, MimicConv)]


@pytest.mark.slow
def test_trained_gone_on_with_and_reported(tmp_path, monkeypatch, capsys):
    variants = grid(lr=(0.05, 0.2), norm=('BN', 'MimicNorm'))
    monkeypatch.setitem(
        EXPERIMENTS, 'ablation', Experiment('A', variants, 'lr', ('network', 'depth'))
    )
    monkeypatch.setitem(
        EXPERIMENTS, 'correlation', Experiment('C', variants[:2], 'layer')
    )
    jobs = EXPERIMENTS['ablation'].jobs(settings, 1, epochs=1)
    before = [
        json.dumps(dict(settings=tree_of(job), result=training.train(job, None))) + '\n'
        for job in jobs[:2]
    ]
    # The second training was killed while its line was written.
    file = tmp_path / 'results.jsonl'
    file.write_text(before[0] + before[1][:-100])
    monkeypatch.setattr(
        sys,
        'argv',
        [
            'mimicnorm',
            '--experiments',
            'ablation',
            'correlation',
            '--seeds',
            '1',
            '--epochs',
            '1',
            '--processes',
            '1',
            '--out',
            str(tmp_path),
        ],
    )
    main()
    # The other experiment has no trainings of its own.
    assert '3 trainings' in capsys.readouterr().out
    lines = file.read_text().splitlines(keepends=True)
    assert lines[0] == before[0]
    # The same training gives the same.
    found = [json.loads(line) for line in lines]
    assert untimed(found[1]) == untimed(json.loads(before[1]))

    written = (tmp_path / 'report.md').read_text()
    rows = make_rows(written)
    assert [row[:4] for row in rows[:4]] == [
        [
            f'{line["settings"]["lr"]:g}',
            line['settings']['norm'],
            f'{100 * line["result"]["accuracy"]:.2f}',
            '0.00',
        ]
        for line in found
    ]
    # Four ReLUs, for each of the two measures.
    for index, measure in enumerate(('channels', 'images')):
        layers = rows[4 + 4 * index : 8 + 4 * index]
        assert [[float(cell) for cell in row[1:]] for row in layers] == [
            [
                pytest.approx(line['result'][moment][measure][layer], abs=1e-3)
                for moment in ('before', 'after')
                for line in found[:2]
            ]
            for layer in range(4)
        ]

    figures = ('ablation.png', 'correlation.png')
    for name in figures:
        (tmp_path / name).unlink()
    main()
    assert 'Every training has its result.' in capsys.readouterr().out
    assert file.read_text() == ''.join(lines)
    assert (tmp_path / 'report.md').read_text() == written
    assert all((tmp_path / name).stat().st_size > 10000 for name in figures)


def test_what_became_of_the_seeds_is_counted():
    jobs = [
        Settings(seed, depth=depth, lr=lr, norm=norm)
        for seed in range(3)
        for depth in (4, 16)
        for norm in ('none', 'MimicNorm')
        for lr in (0.2, 0.01)
    ]

    def result(job):
        accuracy = 0.9 + 0.01 * job.seed + 0.02 * (job.lr < 0.1)
        failed = job.norm == 'none' and job.lr > 0.1
        return dict(
            accuracy=0.19 if failed else accuracy,
            chance=0.1,
            diverged=failed and job.seed == 0,
        )

    rows = report.make_rows(
        jobs, {key_of(job): result(job) for job in jobs}, report.Row
    )
    assert make_rows(report.table(rows))[:2] == [
        ['4', '0.2', 'none', '19.00', '0.00', '1', '2'],
        ['4', '0.01', 'none', '93.00', '2.00', '0', '0'],
    ]
    summary = make_rows(report.summary(rows, 'lr', ['depth']))
    assert summary[0] == ['4', 'none', '3', '0', '93.00', '2.00', '0.01']
    assert summary[3] == ['16', 'MimicNorm', '3', '3', '93.00', '2.00', '0.01']


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
        result = training.train(Settings(0, batch=batch, lr=0.4, epochs=3), None)
        assert result['diverged'] and result['after'] is None
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
    assert correlations(block, images * float('nan')) == dict(
        channels=[None] * 13, images=[None] * 13
    )


def test_memory_of_other_backbones():
    saved = {}
    for norm in ('BN', 'GN', 'MimicNorm', memory.PUBLISHED):
        model = memory.Backbone('MobileNetV2', norm).train()
        inputs = model.inputs((128, 128))
        saved[norm] = saved_bytes(lambda: model.loss(inputs), model.parameters())
    assert saved['GN'] == pytest.approx(saved['BN'], rel=0.01)
    assert saved['MimicNorm'] < 0.75 * saved['BN']
    assert saved[memory.PUBLISHED] < saved['BN']
    assert isinstance(memory.Backbone('ResNet-18', 'BN').net, ResNet)


def test_batches_that_fill_a_memory():
    largest = {}
    for norm in ('BN', 'MimicNorm'):
        model = memory.Backbone('MobileNetV2', norm).train()

        def saved(batch):
            inputs = model.inputs((96, 96), batch)
            return saved_bytes(lambda: model.loss(inputs), model.parameters())

        largest[norm] = largest_batch(lambda batch: saved(batch) <= 120 * 2**20)
        assert saved(largest[norm]) <= 120 * 2**20 < saved(largest[norm] + 1)
    assert largest['MimicNorm'] > 1.25 * largest['BN']
    assert largest_batch(lambda batch: False) == 0
    assert 940 < largest_batch(lambda batch: batch <= 1000) <= 1000


def test_a_gpu_is_filled():
    """As far as that can be seen without one: by an error of its kind."""
    model = memory.Backbone('ResNet-18', 'BN').train()

    def full(net, inputs):
        if len(inputs[0]) > 5:
            raise torch.cuda.OutOfMemoryError('full')

    hook = model.net.register_forward_pre_hook(full)
    batch, speed = memory.fill(model, (32, 32))
    assert batch == 5 and speed > 0
    assert all(p.grad is None for p in model.parameters())
    hook.remove()
    model.net.register_forward_pre_hook(lambda net, _: full(net, [range(9)]))
    assert memory.fill(model, (32, 32)) == (0, 0)
