"""What benchmarks/finetuning.py and demo_norms.py compare, and report."""

import re
import sys
from collections import Counter

import pytest
import torch
from helpers import SHORT, build
from mmcv.cnn import is_norm
from mmengine.config import Config

from benchmarks import demo_norms, finetuning
from mmpsbn.compare.report import Row
from mmpsbn.config.reading import read_config
from mmpsbn.errors import InputError
from mmpsbn.hooks import LevelWatch
from mmpsbn.layers import MimicConv


@pytest.mark.slow
@pytest.mark.usefixtures('forked_runs')
def test_finetuned_from_what_was_pretrained(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('MMDET_DATASETS', 'elsewhere')
    monkeypatch.setitem(
        finetuning.COLLAPSE,
        'retinanet',
        [finetuning.Trainings('finetuned', (1, 2), norms=('psBN',))],
    )
    out = tmp_path / 'out'
    monkeypatch.setattr(
        sys,
        'argv',
        [
            'finetuning',
            '--quick',
            '--detectors',
            'retinanet',
            '--data',
            str(digits),
            str(digits),
            '--parts',
            'collapse',
            '--out',
            str(out),
            '--cfg-options',
            *SHORT,
        ],
    )
    finetuning.main()
    bn, psbn = sorted(out.glob('retinanet/*/*/*/result.json'))[::-1]
    assert psbn.parent.name == 'psBN_lr0.08_seed0'
    start = Config.fromfile(psbn.parent / 'config.py').load_from
    assert start == str(bn.parent / 'epoch_2.pth')
    report = (out / 'report.md').read_text()
    assert '## Where collapse begins: retinanet' in report
    assert '- psBN: not up to lr 0.08.' in report
    assert re.search(r'^\| psBN \| 0.08 \| 1 \| ', report, re.M)
    assert (out / 'collapse-retinanet.png').stat().st_size > 5000

    # Nothing is repeated.
    before = [file.stat().st_mtime_ns for file in (bn, psbn)]
    capsys.readouterr()
    finetuning.main()
    assert capsys.readouterr().out.count('About 0 s to go') == 2
    assert [file.stat().st_mtime_ns for file in (bn, psbn)] == before


def row(lr, before, dead, well=(None,), norm='BN', scores=()):
    return Row(norm, lr, [None], list(well), list(scores), [], before, dead)


def test_where_collapse_begins():
    rows = [
        row(0.4, [0.02], [0.1]),
        row(0.1, [0.02], [0.02]),
        row(0.2, [0.0], [0.03]),
        row(0.8, [], [], well=()),
    ]
    assert finetuning.begins(rows, 'BN') == (
        'BN: from lr 0.2 on, where 3.0% of the channels have died'
    )
    assert finetuning.begins(rows[1:2], 'BN') == 'BN: not up to lr 0.1'
    assert finetuning.begins(rows[3:], 'BN') == 'BN: every run diverged'


def test_a_step_sees_its_batch_in_parts():
    cfg = Config.fromfile(finetuning.CONFIGS['faster-rcnn'])
    batch = cfg.train_dataloader.batch_size
    warm_up = cfg.param_scheduler[0].end
    finetuning.in_parts(cfg, 2)
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.optim_wrapper.accumulative_counts == batch // 2
    # Of iterations, which are now shorter; the other one counts epochs.
    assert cfg.param_scheduler[0].end == warm_up * batch // 2
    assert cfg.param_scheduler[1].T_max == 8
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=10)
    with pytest.raises(InputError, match='--parts micro-batch'):
        finetuning.in_parts(cfg, 1)


def test_table_by_images_at_a_time():
    panels = {
        '1 at a time': [
            row(0.1, [], [], scores=(0.2, 0.4)),
            row(0.1, [], [], norm='GN', scores=(0.5, 0.5)),
        ]
    }
    whole = [
        row(0.1, [], [], scores=(0.6, 0.7)),
        row(0.4, [], [], scores=(0.9, 0.9)),  # Another lr, and norm.
        row(0.1, [], [], norm='psBN', scores=(0.8, 0.8)),
    ]
    lines = finetuning.by_batch(panels, whole).splitlines()
    assert lines[0] == '| Norm | 1 at a time | whole batches |'
    assert lines[2:] == [
        '| BN | 0.300 (0.200) | 0.650 (0.100) |',
        '| GN | 0.500 (0.000) | - |',
    ]


@pytest.mark.parametrize(
    'detector, row, centered, last',
    [
        ('faster-rcnn', 'none', 0, []),
        ('faster-rcnn', 'weight mean', 20, []),
        ('faster-rcnn', 'last BN', 0, ['LastBNLinear']),
        ('faster-rcnn', 'MimicNorm', 20, ['LastBNLinear', 'LastBNRPNHead']),
        ('faster-rcnn', 'MimicNorm, RoI head alone', 20, ['LastBNLinear']),
        ('retinanet', 'none', 0, []),
        ('retinanet', 'weight mean', 20, []),
        ('retinanet', 'last BN', 0, ['LastBNRetinaHead']),
        ('retinanet', 'MimicNorm', 20, ['LastBNRetinaHead']),
    ],
)
def test_parts_of_mimicnorm(detector, row, centered, last):
    cfg = demo_norms.config_with(
        read_config(demo_norms.CONFIGS[detector]), detector, row
    )
    model = build(cfg.model)
    kinds = Counter(type(module).__name__ for module in model.modules())
    assert kinds['MimicConv'] == 20
    assert (
        sum(
            module.centered
            for module in model.modules()
            if isinstance(module, MimicConv)
        )
        == centered
    )
    assert (
        sorted(
            kind
            for kind in kinds
            if kind in ('LastBNLinear', 'LastBNRPNHead', 'LastBNRetinaHead')
        )
        == last
    )


@pytest.mark.parametrize(
    'row, layers, shared',
    [
        ('BN', 0, 0),
        ('BN, shared in the head', 4, 4),
        ('BN, separate in the head', 16, 0),
    ],
)
def test_norm_layers_in_the_head_of_retinanet(row, layers, shared):
    cfg = demo_norms.config_with(
        read_config(demo_norms.CONFIGS['retinanet']), 'retinanet', row
    )
    model = build(cfg.model).train()
    assert sum(map(is_norm, model.bbox_head.modules())) == layers
    watch = LevelWatch(model)
    model(torch.zeros(2, 3, 64, 64), mode='tensor')
    assert len(watch.end()) == shared


def test_settings_of_the_last_bn():
    cfg = read_config(demo_norms.CONFIGS['faster-rcnn'])
    slow, plain = (
        build(demo_norms.config_with(cfg, 'faster-rcnn', row).model)
        for row in ('MimicNorm, momentum=0.01', 'MimicNorm, affine=False')
    )
    assert slow.roi_head.bbox_head.fc_cls.momentum == 0.01
    assert slow.rpn_head.rpn_cls.momentum == 0.01
    assert plain.roi_head.bbox_head.fc_cls.gain is None
