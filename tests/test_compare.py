"""One detector, several normalizations: placed, trained, reported."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import mmcv
import mmdet
import pytest
import torch
from helpers import COMPARE, ROOT, SHORT, build, comparison, demo_config, of_digits, run
from mmengine.runner import load_checkpoint

from mmpsbn.checkpoints.matching import check_compatible
from mmpsbn.checkpoints.reading import Checkpoint
from mmpsbn.compare import (
    NORMALIZATIONS,
    Comparison,
    TrainingCost,
    measure_costs,
    replace_norm,
    write_report,
)
from mmpsbn.compare.costs import list_warnings
from mmpsbn.compare.processes import divide_machine
from mmpsbn.compare.report import make_rows
from mmpsbn.compare.session import estimate_remaining, print_plan
from mmpsbn.config.data import find_images
from mmpsbn.config.reading import read_config
from mmpsbn.convert.to_stock import stock_state
from mmpsbn.detectors.build import load_images
from mmpsbn.detectors.outputs import BatchRunner, distance
from mmpsbn.errors import InputError
from mmpsbn.layers.last_bn import LastBN

LAYERS = {
    'BN': 'BatchNorm2d',
    'FrozenBN': 'BatchNorm2d',
    'norm_eval': 'BatchNorm2d',
    'SyncBN': 'SyncBatchNorm',
    'psBN': 'PSBatchNorm2d',
    'psSyncBN': 'PSSyncBatchNorm',
    'GN': 'GroupNorm',
    'BN+LastBN': 'BatchNorm2d',
    'MimicBody': 'MimicNorm',
    'MimicNorm': 'MimicNorm',
}
HEADS = {
    'faster-rcnn': {'LastBNRPNHead', 'LastBNLinear'},
    'retinanet': {'LastBNRetinaHead'},
}


@pytest.mark.parametrize(
    'detector, before', [('faster-rcnn', 'psbn'), ('retinanet', 'mimicnorm')]
)
@pytest.mark.parametrize('norm', NORMALIZATIONS)
def test_every_norm_finds_its_place(detector, before, norm, digits):
    cfg = demo_config(detector, before)
    text = cfg.pretty_text
    model = build(replace_norm(cfg, norm).model)
    assert cfg.pretty_text == text
    kinds = Counter(type(module).__name__ for module in model.modules())
    assert {kind: kinds[kind] for kind in LAYERS.values() if kinds[kind]} == {
        LAYERS[norm]: 20
    }
    assert kinds['MimicConv'] == (20 if norm in ('MimicNorm', 'MimicBody') else 0)
    assert HEADS[detector] & set(kinds) == (
        HEADS[detector] if norm in ('MimicNorm', 'BN+LastBN') else set()
    )
    backbone = model.backbone
    backbone.train()
    layer = backbone.layer4[1].norm2
    assert layer.training == (norm not in ('FrozenBN', 'norm_eval'))
    assert all(p.requires_grad == (norm != 'FrozenBN') for p in layer.parameters())


def test_group_norm_has_four_channels_a_group_at_least(digits):
    layer = build(
        replace_norm(demo_config('faster-rcnn', 'psbn'), 'GN').model
    ).backbone.gn1
    assert (layer.num_channels, layer.num_groups) == (32, 8)


def test_coco_configs_take_every_norm():
    for norm in NORMALIZATIONS:
        cfg = replace_norm(
            read_config(str(ROOT / 'configs/psbn/retinanet_r50_fpn_psbn_1x_coco.py')),
            norm,
        )
        backbone = cfg.model.backbone
        assert backbone.norm_cfg.type == {
            'FrozenBN': 'BN',
            'norm_eval': 'BN',
            'BN+LastBN': 'BN',
            'MimicBody': 'MimicNorm',
        }.get(norm, norm)
        assert backbone.norm_cfg.get('num_groups', 32) in (16, 32)
        assert backbone.norm_eval == (norm in ('FrozenBN', 'norm_eval'))
        assert 'norm_cfg' not in cfg.model.bbox_head


def separate(cfg):
    """A norm layer for each level, as MMDetection's own head has them."""
    cfg.model.bbox_head.update(
        type='RetinaSepBNHead', num_ins=4, norm_cfg=dict(type='psBN')
    )
    return cfg


def test_norms_of_each_level_apart():
    cfg = separate(demo_config('retinanet', 'psbn'))
    # The backbone's, and of two stacked convs for scores and boxes.
    layers = 20 + 2 * 2 * 4
    for norm in ('psBN', 'GN'):
        model = build(replace_norm(cfg, norm).model)
        assert (
            sum(type(module).__name__ == LAYERS[norm] for module in model.modules())
            == layers
        )
    model = build(replace_norm(cfg, 'BN+LastBN').model)
    assert type(model.bbox_head).__name__ == 'LastBNRetinaSepBNHead'
    # Without norm layers the levels share all of the head.
    model = build(replace_norm(cfg, 'MimicBody').model)
    assert type(model.bbox_head).__name__ == 'RetinaHead'
    model = build(replace_norm(cfg, 'MimicNorm').model)
    assert type(model.bbox_head).__name__ == 'LastBNRetinaHead'
    assert (
        sum(type(module).__name__ == 'MimicConv' for module in model.modules())
        == 20 + 2 * 2
    )


def test_a_config_that_imports_nothing_gets_our_import():
    cfg = read_config(str(ROOT / 'configs/psbn/retinanet_r50_fpn_bn_1x_coco.py'))
    assert 'custom_imports' not in cfg
    assert replace_norm(cfg, 'psBN').custom_imports.imports == ['mmpsbn']
    for names, found in ((None, []), ('my_mmpsbn_ext', ['my_mmpsbn_ext'])):
        cfg.custom_imports = names and dict(imports=names)
        assert replace_norm(cfg, 'psBN').custom_imports.imports == [*found, 'mmpsbn']


def test_the_plan_is_every_norm_lr_and_seed(digits, tmp_path):
    plan = comparison(digits, tmp_path / 'new', seeds=(0, 1), lrs=(0.1, 0.01))
    assert [run.name for run in plan.runs[:4]] == [
        'BN_lr0.1_seed0',
        'psBN_lr0.1_seed0',
        'BN_lr0.01_seed0',
        'psBN_lr0.01_seed0',
    ]
    assert len(set(plan.runs)) == 8
    # 16 images in batches of 8, 8 epochs, evaluated after every second.
    assert plan.workload(plan.runs[0]) == (16, 4, 8, 'epoch')
    assert not (tmp_path / 'new').exists()
    plan.write()
    cfg = plan._config(plan.runs[-1])
    assert (cfg.optim_wrapper.optimizer.lr, cfg.randomness.seed) == (0.01, 1)


def test_learning_rates_are_different_runs_if_they_differ(digits, tmp_path):
    plan = comparison(
        digits, tmp_path / 'new', ('BN',), seeds=(0, 0), lrs=(0.01, 0.01, 0.010000001)
    )
    assert [run.name for run in plan.runs] == [
        'BN_lr0.01_seed0',
        'BN_lr0.010000001_seed0',
    ]


def multiple_sets(evaluator, prefixes=('first', 'second')):
    return dict(
        type='MultiDatasetsEvaluator',
        metrics=[evaluator] * 2,
        dataset_prefixes=prefixes,
        _delete_=True,
    )


@pytest.mark.parametrize(
    'change, name',
    [
        (dict(), 'coco/bbox_mAP'),
        (dict(prefix='val'), 'val/bbox_mAP'),
        (dict(metric=['segm', 'bbox']), 'coco/bbox_mAP'),
        (multiple_sets(dict(type='CocoMetric')), 'first/coco/bbox_mAP'),
        (multiple_sets(dict(type='CocoMetric', prefix='val')), 'first/val/bbox_mAP'),
    ],
)
def test_map_is_found_by_the_name_that_the_config_gives_it(
    change, name, digits, tmp_path
):
    plan = comparison(digits, tmp_path, ('BN',), val_evaluator=change)
    (run,) = plan.runs
    plan.folder(run).mkdir()
    (plan.folder(run) / 'result.json').write_text(
        json.dumps(dict(metrics={name: 0.5, f'{name}_50': 0.7}, seconds=1.0))
    )
    (found,) = make_rows(plan)
    assert (found.scores, found.scores50) == ([0.5], [0.7])
    second = 'the config also measures second'
    assert (second in ' '.join(plan.remarks())) == ('first' in name)


def test_map50_that_is_not_measured_is_no_zero(digits, tmp_path):
    plan = comparison(
        digits, tmp_path, ('BN',), **{'val_evaluator.metric_items': ['mAP']}
    )
    (run,) = plan.runs
    plan.folder(run).mkdir()
    (plan.folder(run) / 'result.json').write_text(
        json.dumps(dict(metrics={'coco/bbox_mAP': 0.5}, seconds=1.0))
    )
    write_report(plan, {'BN': TrainingCost(1.0, 1.0, 1.0, 1.0, None, 8)}, 'command')
    assert (
        '| BN | 0.04 | 1 | 0.500 | - | - | - |' in (tmp_path / 'report.md').read_text()
    )


def test_time_is_estimated_from_what_was_seen(digits, tmp_path):
    plan = comparison(digits, tmp_path, seeds=(0, 1))
    cost = TrainingCost(10.0, 1.0, 2.0, 0.0, None, 8)
    costs = {'BN': cost, 'psBN': cost._replace(step=20.0)}
    bn, psbn = plan.runs[:2]
    # Start-up, 16 steps and 4 evaluations of one batch, and the overhead.
    assert plan.estimate_seconds(costs)[bn] == pytest.approx(1.2 * (15 + 160 + 8))
    folder = plan.folder(bn)
    folder.mkdir()
    (folder / 'result.json').write_text(json.dumps(dict(metrics={}, seconds=366.0)))
    assert plan.estimate_seconds(costs)[bn] == 366
    assert plan.estimate_seconds(costs)[psbn] == pytest.approx(2 * (15 + 320 + 8))
    assert (plan.progress(bn), plan.progress(psbn)) == (1, 0)


def test_mimicnorm_starts_from_converted_weights(digits, tmp_path):
    torch.manual_seed(0)
    bn = tmp_path / 'bn.pth'
    model = build(replace_norm(demo_config('faster-rcnn', 'psbn'), 'BN').model)
    torch.save(dict(state_dict=model.state_dict()), bn)
    plan = comparison(digits, tmp_path / 'work', ('BN', 'MimicNorm'), load_from=str(bn))
    plan.write()
    configs = [plan._config(run) for run in plan.runs]
    assert configs[0].load_from == str(bn)
    converted = torch.load(configs[1].load_from)['state_dict']
    assert (
        converted['backbone.layer1.0.conv1.weight'].mean((1, 2, 3)).abs().max() < 1e-6
    )
    assert 'tools/convert.py' in plan.remarks()[0]


@pytest.mark.parametrize(
    'detector, apart',
    [('faster-rcnn', False), ('retinanet', False), ('retinanet', True)],
)
def test_bn_with_last_bn_starts_as_the_loaded_detector(
    detector, apart, digits, tmp_path
):
    cfg = of_digits(demo_config(detector, 'psbn'), digits)
    if apart:
        separate(cfg)
    model = build(replace_norm(cfg, 'BN').model)
    model.backbone.conv1.weight.data.mul_(3)
    state = model.state_dict()
    cfg.load_from = str(tmp_path / 'bn.pth')
    torch.save(dict(state_dict=state), cfg.load_from)
    norm = 'BN+LastBN'
    plan = Comparison(
        cfg, {norm: replace_norm(cfg, norm)}, [], [0], str(tmp_path / 'work')
    )
    plan.write()
    start = plan._config(plan.runs[0])
    assert norm in plan.remarks()[0]
    changed = build(start.model)
    weights = torch.load(start.load_from)['state_dict']
    check_compatible(changed, Checkpoint(start.load_from, weights))
    changed.load_state_dict(weights, strict=False)
    data = load_images(cfg, find_images(cfg, None, 2), model)
    run = BatchRunner(data)
    assert distance(run(changed.eval()), run(model.eval())) < 1e-5
    last = next(layer for layer in changed.modules() if isinstance(layer, LastBN))
    assert not torch.equal(last.running_mean, torch.zeros_like(last.bias))
    # And back, as tools/convert.py --to bn does.
    expected = run(changed)
    model.load_state_dict(stock_state(changed, model))
    assert distance(run(model), expected) < 1e-5
    # What it has become is a start for BN+LastBN alone.
    cfg.load_from = start.load_from
    again = Comparison(
        cfg, {norm: replace_norm(cfg, norm)}, [], [0], str(tmp_path / 'again')
    )
    assert again._config(again.runs[0]).load_from == start.load_from
    with pytest.raises(InputError, match='has a last BN, so .*BN, MimicBody cannot'):
        Comparison(
            cfg,
            {other: replace_norm(cfg, other) for other in ('BN', norm, 'MimicBody')},
            [],
            [0],
            str(tmp_path / 'other'),
        )


def test_the_body_of_mimicnorm_starts_from_converted_weights(digits, tmp_path):
    bn = tmp_path / 'bn.pth'
    model = build(replace_norm(demo_config('retinanet', 'psbn'), 'BN').model)
    torch.save(dict(state_dict=model.state_dict()), bn)
    plan = comparison(
        digits,
        tmp_path / 'work',
        ('MimicBody', 'BN+LastBN'),
        detector='retinanet',
        load_from=str(bn),
        **{
            'model.backbone.init_cfg': dict(
                type='Pretrained', checkpoint='backbone.pth', _delete_=True
            )
        },
    )
    # Only a body of MimicNorm needs another backbone.
    assert [remark.split(', converted')[0] for remark in plan.remarks()[:2]] == [
        f'MimicBody starts from backbone.pth, {bn}',
        f'BN+LastBN starts from {bn}',
    ]
    plan = comparison(
        digits,
        tmp_path / 'work',
        ('MimicBody',),
        detector='retinanet',
        load_from=str(bn),
    )
    plan.write()
    cfg = plan._config(plan.runs[0])
    converted = torch.load(cfg.load_from)
    check_compatible(build(cfg.model), Checkpoint(cfg.load_from, converted))
    assert (
        converted['state_dict']['backbone.layer1.0.conv1.weight']
        .mean((1, 2, 3))
        .abs()
        .max()
        < 1e-6
    )


def test_starts_of_one_file_name_are_converted_apart(digits, tmp_path):
    model = build(replace_norm(demo_config('faster-rcnn', 'psbn'), 'BN').model)
    paths = []
    for name, value in (('a', 1.0), ('b', 2.0)):
        (tmp_path / name).mkdir()
        paths.append(str(tmp_path / name / 'model.pth'))
        model.neck.fpn_convs[0].conv.bias.data.fill_(value)
        torch.save(dict(state_dict=model.state_dict()), paths[-1])
    plan = comparison(
        digits,
        tmp_path / 'work',
        ('MimicNorm',),
        load_from=paths[1],
        **{
            'model.backbone.init_cfg': dict(
                type='Pretrained', prefix='backbone', checkpoint=paths[0], _delete_=True
            )
        },
    )
    plan.write()
    cfg = plan._config(plan.runs[0])
    values = [
        torch.load(path)['state_dict']['neck.fpn_convs.0.conv.bias'][0]
        for path in (cfg.model.backbone.init_cfg.checkpoint, cfg.load_from)
    ]
    assert values == [1, 2]


def test_a_detector_of_other_classes_reinitializes_them(digits, tmp_path):
    bn = tmp_path / 'bn.pth'
    cfg = demo_config('faster-rcnn', 'psbn')
    cfg.model.roi_head.bbox_head.num_classes = 4
    state = build(replace_norm(cfg, 'BN').model).state_dict()
    torch.save(dict(state_dict=state), bn)
    plan = comparison(digits, tmp_path / 'work', ('GN', 'MimicNorm'), load_from=str(bn))
    plan.write()
    layers = ['roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg']
    assert any(
        remark.startswith(f'{", ".join(layers)} are reinitialized')
        for remark in plan.remarks()
    )
    # MMEngine loads what fits.
    gn, mimic = plan.runs
    model = build(plan.cfgs['GN'].model)
    model.roi_head.bbox_head.fc_cls.weight.data.fill_(7)
    load_checkpoint(model, str(bn), 'cpu', logger='silent')
    assert (model.roi_head.bbox_head.fc_cls.weight == 7).all()
    assert torch.equal(
        model.state_dict()['backbone.conv1.weight'], state['backbone.conv1.weight']
    )
    assert (model.backbone.gn1.weight == 1).all()
    starts = [
        torch.load(plan._config(run).load_from)['state_dict'] for run in (gn, mimic)
    ]
    (converted,) = (tmp_path / 'work').glob('converted_*.pth')
    missing = set(build(plan.cfgs['MimicNorm'].model).state_dict()) - set(
        torch.load(converted)['state_dict']
    )
    assert {key.rpartition('.')[0] for key in missing} == set(layers)
    # They are the same in both, except what the last BN has in addition.
    common = missing.intersection(*starts)
    assert {key.rpartition('.')[0] for key in common} == set(layers)
    for key in common:
        assert torch.equal(*(start[key] for start in starts))
    # GN has the names of BN in shortcuts, and none of its weights.
    assert 'backbone.layer2.0.downsample.1.weight' in model.state_dict()
    norms = {key for key in state if re.search(r'\.bn\d|downsample\.1', key)}
    assert norms and not norms & starts[0].keys()
    for key in norms:
        del state[key]
    for start, before in zip(starts, (state, torch.load(converted)['state_dict'])):
        assert all(
            torch.equal(start[key], before[key]) for key in before if key not in missing
        )


def test_what_is_no_start_for_all(digits, tmp_path):
    other = tmp_path / 'other.pth'
    cfg = demo_config('faster-rcnn', 'psbn')
    cfg.model.roi_head.bbox_head.fc_out_channels = 128
    torch.save(dict(state_dict=build(cfg.model).state_dict()), other)
    with pytest.raises(InputError, match='does not fit the model'):
        comparison(digits, tmp_path / 'work', load_from=str(other))
    mimic = tmp_path / 'mimic.pth'
    torch.save(build(demo_config('faster-rcnn', 'mimicnorm').model).state_dict(), mimic)
    with pytest.raises(InputError, match='has MimicNorm, so psBN cannot start from it'):
        comparison(
            digits, tmp_path / 'work', ('psBN', 'MimicNorm'), load_from=str(mimic)
        )
    plan = comparison(digits, tmp_path / 'work', ('MimicNorm',), load_from=str(mimic))
    assert plan._config(plan.runs[0]).load_from == str(mimic)


def test_norms_of_each_level_do_not_become_mimicnorm(tmp_path, digits):
    cfg = of_digits(separate(demo_config('retinanet', 'psbn')), digits)
    bn = tmp_path / 'bn.pth'
    torch.save(build(replace_norm(cfg, 'BN').model).state_dict(), bn)
    cfg.load_from = str(bn)
    cfgs = {norm: replace_norm(cfg, norm) for norm in ('GN', 'MimicNorm')}
    with pytest.raises(InputError, match='MimicNorm cannot start .*SepBN'):
        Comparison(cfg, cfgs, [], [0], str(tmp_path / 'work'))
    del cfgs['MimicNorm']
    Comparison(cfg, cfgs, [], [0], str(tmp_path / 'work'))


@pytest.mark.slow
def test_interrupted_resumed_and_reported(compare, capsys, digits, tmp_path):
    work_dir = tmp_path / 'work'
    plan = (
        '--work-dir',
        str(work_dir),
        '--norms',
        'BN',
        'MimicNorm',
        '--seeds',
        '1',
        '--rounds',
        '1',
        '--at-once',
        '2',
        '--cfg-options',
        *SHORT,
        'train_cfg.max_epochs=2',
    )
    folders = [work_dir / f'{norm}_lr0.04_seed0' for norm in ('BN', 'MimicNorm')]

    def interrupt():
        while not any((folder / 'last_checkpoint').exists() for folder in folders):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert compare(*plan) == 130
    assert 'the same command resumes from here' in capsys.readouterr().err
    for folder in folders:
        assert not (folder / 'result.json').exists()
        assert float((folder / 'seconds.txt').read_text()) > 1
    first = next(folder for folder in folders if (folder / 'last_checkpoint').exists())

    assert compare(*plan) == 0
    output = capsys.readouterr().out
    assert re.search('(50|75)% done', output)
    assert output.count(': done, ') == 2
    resumed = (first / 'output.txt').read_text()
    assert 'Epoch(train) [2]' in resumed
    assert 'Epoch(train) [1]' not in resumed
    for folder in folders:
        ended = json.loads((folder / 'result.json').read_text())
        assert ended['metrics']['step'] == 2 and not ended['diverged']

    report = (work_dir / 'report.md').read_text()
    for norm in ('BN', 'MimicNorm'):
        assert re.search(rf'^\| {norm} \| 0.04 \| 1 \|', report, re.M)
    page = (work_dir / 'report.html').read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == len(list(work_dir.glob('*.png'))) >= 2
    assert all(source.startswith('data:image/png') for source in sources)
    assert '<td' in page and 'http' not in page
    if shutil.which('chromium'):
        picture = tmp_path / 'page.png'
        subprocess.run(
            [
                'chromium',
                '--headless',
                '--no-sandbox',
                '--window-size=900,1600',
                f'--screenshot={picture}',
                f'file://{work_dir}/report.html',
            ],
            check=True,
            capture_output=True,
        )
        # The text and bars of a page, which is mostly white.
        assert 0.01 < (mmcv.imread(str(picture)) < 128).mean() < 0.5

    # What has ended is not repeated, and more can be added.
    again = comparison(digits, tmp_path / 'new', seeds=(0, 1))
    again.work_dir = work_dir
    assert [again.progress(run) for run in again.runs] == [1, 0, 0, 0]


def test_runs_at_once_share_the_machine(monkeypatch):
    assert divide_machine(1, 8) == [{}]
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: range(8))
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert divide_machine(2, 2) == [dict(OMP_NUM_THREADS='2')] * 2
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3,5,7')
    pairs = [
        dict(OMP_NUM_THREADS='2', CUDA_VISIBLE_DEVICES=names)
        for names in ('2,3', '5,7')
    ]
    assert divide_machine(2, 2) == pairs
    # More runs than GPUs share them.
    monkeypatch.setenv('OMP_NUM_THREADS', '2')
    assert divide_machine(3, 2) == [*pairs, pairs[0]]
    with pytest.raises(InputError, match='needs 8 GPUs; there are 4'):
        divide_machine(2, 8)


def test_a_dry_run_writes_nothing(compare, capsys, tmp_path):
    assert (
        compare(
            '--norms',
            'psBN',
            'BN+LastBN',
            '--seeds',
            '2',
            '--rounds',
            '1',
            '--work-dir',
            str(tmp_path / 'new'),
            '--dry-run',
        )
        == 0
    )
    output = capsys.readouterr().out
    assert re.search(r'psBN, lr 0.04, seed 0 +\d+ ', output)
    assert re.search(r'psBN, lr 0.04, seed 1 +\d+ ', output)
    assert 'on this machine.' in output
    assert (
        'The config of BN+LastBN differs from that of psBN in more than '
        "its norm layers: model.rpn_head.type is 'LastBNRPNHead'"
    ) in output
    assert not (tmp_path / 'new').exists()


STOCK = """_base_ = ['{}']
data = dict(metainfo=dict(classes=tuple('0123456789')))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False,
                        dataset={})
val_dataloader = dict(dataset=data)
model = dict(backbone=dict(init_cfg=None), bbox_head=dict(num_classes=10))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    'name, dataset, options',
    [
        (
            'retinanet/retinanet_r18_fpn_1x_coco',
            'data',
            ['train_dataloader.dataset.pipeline.2.scale=(160,160)'],
        ),
        (
            'yolox/yolox_tiny_8xb8-300e_coco',
            'dict(dataset=data)',
            [
                'train_dataloader.dataset.pipeline.0.img_scale=(96,96)',
                'train_dataloader.dataset.pipeline.1.border=(-48,-48)',
                'train_dataloader.dataset.pipeline.4.scale=(96,96)',
            ],
        ),
    ],
)
def test_configs_that_are_not_inherited_from_mmdet(
    name, dataset, options, digits, tmp_path
):
    base = Path(mmdet.__file__).parent / '.mim' / 'configs' / f'{name}.py'
    config = tmp_path / 'config.py'
    config.write_text(STOCK.format(base, dataset))
    # A process of its own, in which nothing has set a default scope.
    status, output = run(
        COMPARE[0],
        config,
        '--norms',
        'psBN',
        '--seeds',
        '1',
        '--rounds',
        '1',
        '--work-dir',
        tmp_path / 'new',
        '--dry-run',
        data=digits,
        options=options,
    )
    assert status == 0, output
    assert 'on this machine.' in output


def test_psbn_without_decay_is_warned_of(digits, tmp_path):
    plan = comparison(
        digits,
        tmp_path / 'work',
        **{'optim_wrapper.paramwise_cfg': dict(norm_decay_mult=0.0)},
    )
    (warning,) = list_warnings(measure_costs(plan.cfgs, rounds=1))
    assert re.match(r'psBN: (\d+) of \1 psBN layers have no weight decay', warning)


def test_runs_at_once_share_no_file_of_results(digits, tmp_path):
    plan = comparison(
        digits, tmp_path / 'work', **{'val_evaluator.outfile_prefix': 'results/val'}
    )
    plan.write()
    assert [plan._config(run).val_evaluator.outfile_prefix for run in plan.runs] == [
        str(plan.folder(run) / 'val') for run in plan.runs
    ]


def test_pretrained_weights_of_gn_are_remarked(digits, tmp_path):
    plan = comparison(
        digits,
        tmp_path / 'work',
        ('BN', 'GN'),
        **{
            'model.backbone.norm_cfg': dict(type='GN', num_groups=8),
            'model.backbone.init_cfg': dict(
                type='Pretrained', checkpoint='gn.pth', _delete_=True
            ),
        },
    )
    assert plan.remarks() == [
        'gn.pth is assumed to be a checkpoint with GN, because the config has GN. It '
        'has no running statistics for the other normalizations.'
    ]


def test_fixed_statistics_need_starting_weights(digits, tmp_path):
    plan = comparison(digits, tmp_path / 'work', ('BN', 'FrozenBN', 'norm_eval'))
    found = [line for line in plan.remarks() if 'random weights' in line]
    assert found == [
        'The running statistics of FrozenBN and norm_eval are those of the starting '
        'weights. The config starts from random weights, so nothing is normalized '
        'there.'
    ]


def test_norm_layers_that_levels_share_are_reported(digits, tmp_path, capsys):
    plan = comparison(
        digits,
        tmp_path / 'work',
        ('psBN', 'GN'),
        detector='retinanet',
        **{'model.bbox_head.norm_cfg': dict(type='BN')},
    )
    costs = measure_costs(plan.cfgs, rounds=1)
    print_plan(plan, costs, 1)
    warning = 'psBN: 4 batch norm layers (for example bbox_head.cls_convs.0.bn)'
    assert warning in capsys.readouterr().out
    run = plan.runs[0]
    plan.folder(run).mkdir(parents=True)
    (plan.folder(run) / 'result.json').write_text(
        json.dumps(dict(metrics={'coco/bbox_mAP': 0.5}, seconds=366.0))
    )
    report = write_report(plan, costs, 'command').with_suffix('.md')
    assert f'Warnings:\n\n- {warning}' in report.read_text()
    assert 'GN:' not in report.read_text()


@pytest.mark.slow
@pytest.mark.usefixtures('forked_runs')
def test_a_failed_run_is_reported_and_the_others_continue(digits, tmp_path):
    plan = comparison(digits, tmp_path / 'work', seeds=(0, 1))
    plan.write()
    for cfg in plan.cfgs.values():
        cfg.custom_hooks = [dict(type='NoSuchHook')]
    run = plan.runs[0]
    assert not plan.run(run, lambda share: None)
    assert 'NoSuchHook' in plan.failures[run]
    assert plan.result(run) is None


@pytest.mark.slow
@pytest.mark.usefixtures('forked_runs')
def test_a_run_that_diverges_has_ended(digits, tmp_path):
    plan = comparison(
        digits,
        tmp_path / 'work',
        ('BN',),
        lrs=(0.04, 1e30),
        **{'optim_wrapper.clip_grad': None},
    )
    plan.write()
    good, bad = plan.runs
    assert plan.run(bad, lambda share: None), plan.failures
    assert plan.progress(bad) == 1
    plan.folder(good).mkdir()
    (plan.folder(good) / 'result.json').write_text(
        json.dumps(dict(metrics={'coco/bbox_mAP': 0.5}, seconds=366.0))
    )
    first, second = make_rows(plan)
    assert (first.scores, first.well) == ([0.5], [good])
    assert (second.scores, second.well, second.dead) == ([0], [], [])
    # It says nothing of how long one takes.
    costs = {'BN': TrainingCost(1.0, 1.0, 1.0, 1.0, None, 8)}
    assert plan.estimate_seconds(costs)[bad] == 366
    write_report(plan, costs, 'command')
    assert (tmp_path / 'work' / 'lrs.png').exists()
    report = (tmp_path / 'work' / 'report.md').read_text()
    assert re.search(
        r'^\| BN \| 1e\+30 \| 1 \| 0.000 .*\| - \| - \| 1 \|$', report, re.M
    )


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--norms', 'psbm'], 'Did you mean psBN or'),
        (['--norms', 'LN'], 'is not a normalization of this comparison'),
        (['--seeds', '0'], 'it must be at least 1. Try --seeds 3.'),
        (['--lrs', '-1'], 'a learning rate must be positive'),
        (['--lrs', 'inf'], 'a learning rate must be positive'),
        (['--work-dir', 'other'], 'belongs to another comparison'),
        (['--work-dir', 'foreign'], 'is not empty and holds no comparison'),
        (['--work-dir', 'file'], 'cannot be read: Not a directory'),
    ],
)
def test_refuses(arguments, words, refused, digits, tmp_path):
    for folder, file in (('other', 'comparison.json'), ('foreign', 'x')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text('{}')
    (tmp_path / 'file').write_text('')
    if arguments[0] == '--work-dir':
        arguments = ['--work-dir', tmp_path / arguments[1]]
    else:
        arguments = [*arguments, '--work-dir', tmp_path / 'new']
    assert words in refused(*COMPARE, *arguments, data=digits)
    assert not (tmp_path / 'new').exists()


def test_a_model_without_a_backbone(digits):
    cfg = demo_config('faster-rcnn', 'psbn')
    del cfg.model['backbone']
    with pytest.raises(InputError, match='has no backbone'):
        replace_norm(cfg, 'BN')


@pytest.mark.parametrize(
    'change',
    [
        dict(val_evaluator=dict(type='VOCMetric', metric=['recall'], _delete_=True)),
        dict(val_evaluator=dict(type='LVISMetric')),
        dict(val_dataloader=None),
        dict(val_evaluator=dict(metric='proposal')),
        dict(val_evaluator=dict(metric_items=['AR@100'])),
    ],
)
def test_a_config_that_measures_no_map(change, digits, tmp_path):
    cfg = demo_config('faster-rcnn', 'psbn')
    cfg.merge_from_dict(change)
    with pytest.raises(InputError, match='by the mAP of boxes'):
        Comparison(cfg, {'BN': cfg}, [], [0], str(tmp_path / 'work'))


@pytest.mark.parametrize(
    'change, names',
    [
        (dict(), ['pascal_voc/mAP', 'pascal_voc/AP50']),
        (
            dict(prefix='val', metric=['mAP'], iou_thrs=[0.5, 0.75]),
            ['val/mAP', 'val/AP50'],
        ),
        (dict(iou_thrs=0.75), ['pascal_voc/mAP']),
    ],
)
def test_map_of_voc(change, names, digits, tmp_path):
    plan = comparison(
        digits,
        tmp_path / 'new',
        ('BN',),
        val_evaluator=dict(type='VOCMetric', _delete_=True, **change),
    )
    assert plan.score_names == names


def test_the_learning_rate_is_that_of_the_one_optimizer(digits, tmp_path):
    wrapper = dict(
        type='AmpOptimWrapper',
        loss_scale='dynamic',
        optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1)}),
        _delete_=True,
    )
    plan = comparison(digits, tmp_path / 'new', lrs=[0.002], optim_wrapper=wrapper)
    plan.write()
    for planned in plan.runs:
        found = plan._config(planned).optim_wrapper
        assert found.pop('optimizer') == dict(wrapper['optimizer'], lr=0.002)
        assert all(wrapper[name] == value for name, value in found.items())
    for optimizer in (dict(type='AdamW', _delete_=True), None):
        with pytest.raises(InputError, match='optimizer.lr .* not set'):
            comparison(
                digits, tmp_path / 'new', **{'optim_wrapper.optimizer': optimizer}
            )


def test_a_config_that_never_evaluates(digits, tmp_path):
    with pytest.raises(InputError, match='val_begin=9 .* never measured'):
        comparison(digits, tmp_path, **{'train_cfg.val_begin': 9})


def test_the_remaining_time_is_computed_in_memory(digits, tmp_path):
    plan = comparison(digits, tmp_path, ('BN',), seeds=(0, 1, 2))
    costs = {'BN': TrainingCost(10.0, 1.0, 2.0, 0.0, None, 8)}
    ended, interrupted, _ = map(plan.folder, plan.runs)
    ended.mkdir()
    (ended / 'result.json').write_text(json.dumps(dict(metrics={}, seconds=100.0)))
    log = interrupted / 'now' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('{"iter": 4}\n')
    # One run has ended, and one has completed 4 of 16 iterations.
    assert estimate_remaining(plan, costs, 1) == 175
    shutil.rmtree(ended)
    log.unlink()
    assert estimate_remaining(plan, costs, 1) == 175
