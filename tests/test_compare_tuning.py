"""The conditions of a comparison: held-out images, lengths, equal starts."""

import json
import re
from pathlib import Path

import pytest
import torch
from helpers import COMPARE, SHORT, build, comparison, demo_config, write_voc
from mmengine.config import Config
from mmengine.runner import Runner, load_checkpoint

from mmpsbn.compare import TrainingCost, write_report
from mmpsbn.compare.held_out import FILES, HeldOut
from mmpsbn.compare.schedule import stretch
from mmpsbn.errors import InputError
from mmpsbn.layers import MimicConv

TUNE = 0.25  # Four images, in which each digit is found.
COST = TrainingCost(1.0, 1.0, 1.0, 1.0, None, 8)


def end(plan, run, score):
    """Let a run have ended with a score."""
    plan.folder(run).mkdir(exist_ok=True)
    (plan.folder(run) / 'result.json').write_text(
        json.dumps(dict(metrics={'coco/bbox_mAP': score}, seconds=9.0, diverged=False))
    )


def test_images_are_held_out(digits, tmp_path):
    plan = comparison(digits, tmp_path, lrs=(0.01, 0.1), tune=TUNE)
    plan.write()
    original = json.loads((digits / 'annotations/instances_train2017.json').read_text())
    files = [tmp_path / name for name in FILES]
    parts = [json.loads(file.read_text()) for file in files]
    images = [{image['id'] for image in part['images']} for part in parts]
    assert list(map(len, images)) == [12, 4]
    assert images[0] | images[1] == {i['id'] for i in original['images']}
    for part, own in zip(parts, images):
        assert part['annotations'] == [
            box for box in original['annotations'] if box['image_id'] in own
        ]
        assert len({box['category_id'] for box in part['annotations']}) == 10
    # Another call makes the same split.
    before = [file.read_bytes() for file in files]
    HeldOut(plan.cfg, TUNE).write(tmp_path)
    assert [file.read_bytes() for file in files] == before

    tuning, final = (
        plan._config(run) for run in (plan.runs[0], plan.finals[0]._replace(lr=0.1))
    )
    for cfg, train, val in ((tuning, 12, 4), (final, 16, 8)):
        loaders = [
            Runner.build_dataloader(
                dict(cfg[name], num_workers=0, persistent_workers=False), seed=0
            )
            for name in ('train_dataloader', 'val_dataloader')
        ]
        assert [len(loader.dataset) for loader in loaders] == [train, val]
        for loader in loaders:
            next(iter(loader))  # Its images are found.
        assert cfg.val_evaluator.ann_file == str(loaders[1].dataset.ann_file)
    assert {loaders[1].dataset.get_data_info(0)['img_id']} <= set(range(9))


def test_learning_rates_are_chosen_on_held_out_images(digits, tmp_path):
    plan = comparison(
        digits, tmp_path, lrs=(0.01, 0.1, 0.2), tune=TUNE, tune_seeds=2, seeds=(0, 1)
    )
    assert [str(run) for run in plan.runs[:2]] == [
        'tuning BN, lr 0.01, seed 1000',
        'tuning psBN, lr 0.01, seed 1000',
    ]
    assert len(plan.tuning) == 2 * 3 * 2
    assert str(plan.finals[0]) == 'BN, lr to be chosen, seed 0'
    # 12 and 16 images in batches of 8; 4 and 8 images to evaluate on.
    assert plan.workload(plan.tuning[0]) == (16, 4, 4, 'epoch')
    assert plan.workload(plan.finals[0]) == (16, 4, 8, 'epoch')
    plan.write()
    scores = dict(
        BN={0.01: 0.3, 0.1: 0.5, 0.2: 0.3}, psBN={0.01: 0.2, 0.1: 0.2, 0.2: 0}
    )
    for run in plan.tuning[:-1]:
        end(plan, run, scores[run.norm][run.lr] + 0.01 * (run.seed - 1000))
    assert [run.lr for run in plan.finals[:2]] == [0.1, None]
    end(plan, plan.tuning[-1], 0.1)
    # The lower one of two that are equally good.
    assert {run.norm: run.lr for run in plan.finals} == {'BN': 0.1, 'psBN': 0.01}
    for run in plan.finals:
        end(plan, run, 0.4)
    write_report(plan, dict(BN=COST, psBN=COST), 'command')
    report = (tmp_path / 'report.md').read_text()
    assert 'held-out training\nimages (4, 25%)' in report
    assert '--lrs (psBN 0.01): the range may be too narrow' in report
    assert 'optimistic' not in report
    assert re.search(r'^\| BN \| 0.1 \| 2 \| 0.505 \| .* \| yes \|$', report, re.M)
    # More rates may change the choice, and nothing is lost.
    more = comparison(
        digits,
        tmp_path,
        lrs=(0.01, 0.1, 0.2, 0.4),
        tune=TUNE,
        tune_seeds=2,
        seeds=(0, 1),
    )
    assert sum(more.progress(run) for run in more.tuning) == 12
    assert more.finals[0].lr is None


def test_rates_are_chosen_for_each_length(digits, tmp_path):
    plan = comparison(
        digits, tmp_path, ('BN',), lrs=(0.01, 0.1), tune=TUNE, lengths=(1, 2)
    )
    plan.write()
    for run in plan.tuning:
        end(plan, run, run.lr if run.length == 1 else 1 - run.lr)
    assert [run.name for run in plan.finals] == ['BN_lr0.1_seed0', 'BN_x2_lr0.01_seed0']
    assert plan.workload(plan.finals[1]) == (32, 8, 8, 'epoch')
    cost = {'BN': COST}
    # No final run has ended, so the time is estimated from other runs.
    seconds = plan.estimate_seconds(cost)
    assert seconds[plan.tuning[0]] == 9
    assert seconds[plan.finals[1]] > seconds[plan.finals[0]]


@pytest.mark.slow
@pytest.mark.usefixtures('forked_runs')
def test_tuned_trained_resumed_and_reported(compare, capsys, tmp_path):
    work_dir = tmp_path / 'work'
    plan = (
        '--work-dir',
        str(work_dir),
        '--norms',
        'MimicNorm',
        '--seeds',
        '1',
        '--rounds',
        '1',
        '--at-once',
        '2',
        '--tune',
        str(TUNE),
        '--lrs',
        '0.01',
        '0.02',
        '--cfg-options',
        *SHORT,
    )
    assert compare(*plan) == 0
    output = capsys.readouterr().out
    assert 'MimicNorm, lr to be chosen, seed 0' in output
    assert output.count(': done, ') == 3
    results = sorted(work_dir.glob('*/result.json'))
    final, *tuning = [file.parent.name for file in results]
    assert tuning == [f'tuning_MimicNorm_lr{lr}_seed1000' for lr in ('0.01', '0.02')]
    assert final in ('MimicNorm_lr0.01_seed0', 'MimicNorm_lr0.02_seed0')
    assert (work_dir / 'report.html').exists()
    for run in (final, *tuning):
        assert re.search(
            'Load checkpoint from .*initial_seed',
            (work_dir / run / 'output.txt').read_text(),
        )
    # The same command repeats nothing, and trains what is missing.
    before = [file.stat().st_mtime_ns for file in results]
    results[1].unlink()
    assert compare(*plan) == 0
    assert capsys.readouterr().out.count(': done, ') == 1
    assert [file.stat().st_mtime_ns for file in results[::2]] == before[::2]


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--tune', '0'], '--tune 0 is not supported: it is the share'),
        (['--tune', '1'], '--tune 1 is not supported: it is the share'),
        (['--tune', 'nan'], '--tune nan is not supported: it is the share'),
        (
            ['--tune', '0.25', '--lrs', '0.1', '0.1'],
            '--tune 0.25 has nothing to choose from: the only learning rate is 0.1',
        ),
        (
            ['--tune', '0.05', '--lrs', '0.1', '0.2'],
            r'holds out 1 of the 16 images .* leaves the classes .* without an',
        ),
        (
            ['--tune', '0.99', '--lrs', '0.1', '0.2'],
            r'holds out 16 of the 16 images .* leaves the classes .* without an',
        ),
        (['--tune-seeds', '0'], 'it must be at least 1. Try --tune-seeds 1.'),
        (['--tune-seeds', '2'], '--tune-seeds 2 has no effect without --tune'),
        (['--lengths', '1', '0'], '--lengths 0 is not supported: each is a mult'),
        (['--lengths', '-1'], '--lengths -1 is not supported: each is a mult'),
        (['--lengths', 'inf'], '--lengths inf is not supported: each is a mult'),
    ],
)
def test_refuses(arguments, words, refused, digits, tmp_path):
    assert re.search(
        words,
        refused(*COMPARE, *arguments, '--work-dir', tmp_path / 'new', data=digits),
    )
    assert not (tmp_path / 'new').exists()


def test_a_class_with_one_image_cannot_be_split(digits, tmp_path):
    file = tmp_path / 'train.json'
    content = json.loads((digits / 'annotations/instances_train2017.json').read_text())
    first = next(box for box in content['annotations'] if box['category_id'] == 1)
    content['annotations'] = [
        box for box in content['annotations'] if box['category_id'] != 1 or box is first
    ]
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match='leaves the class 0 without'):
        comparison(
            digits,
            tmp_path / 'new',
            lrs=(0.1, 0.2),
            tune=TUNE,
            **{'train_dataloader.dataset.ann_file': str(file)},
        )


def test_other_data_sets_cannot_be_split(digits, tmp_path):
    write_voc(digits, tmp_path / 'voc')
    cfg = demo_config('faster-rcnn', 'psbn')
    cfg.train_dataloader.dataset = dict(
        type='VOCDataset',
        data_root=str(tmp_path / 'voc'),
        ann_file='VOC2007/ImageSets/Main/train.txt',
        data_prefix=dict(sub_data_root='VOC2007/'),
        pipeline=[],
    )
    with pytest.raises(
        InputError,
        match="COCO's layout in train_dataloader, .*the config has VOCDataset. Convert",
    ):
        HeldOut(cfg, TUNE)
    cfg = demo_config('faster-rcnn', 'psbn')
    cfg.val_dataloader.dataset = dict(
        type='ConcatDataset', datasets=[cfg.val_dataloader.dataset] * 2
    )
    with pytest.raises(InputError, match='config has CocoDataset, CocoDatas'):
        HeldOut(cfg, TUNE)


def test_a_data_set_without_validation_images(digits, tmp_path):
    file = tmp_path / 'val.json'
    content = json.loads((digits / 'annotations/instances_val2017.json').read_text())
    file.write_text(json.dumps(dict(content, images=[], annotations=[])))
    with pytest.raises(InputError, match='val.json lists no image'):
        comparison(
            digits, tmp_path / 'new', **{'val_dataloader.dataset.ann_file': str(file)}
        )


def test_a_comparison_that_is_tuned_is_another(digits, tmp_path):
    comparison(digits, tmp_path, lrs=(0.1, 0.2)).write()
    with pytest.raises(InputError, match='--tune or number of processes'):
        comparison(digits, tmp_path, lrs=(0.1, 0.2), tune=TUNE)


def scheduled(*schedulers, loop=None, hooks=()):
    return Config(
        dict(
            train_cfg=loop or dict(max_epochs=12, val_interval=1),
            param_scheduler=list(map(dict, schedulers)),
            custom_hooks=list(hooks),
        )
    )


WARM_UP = dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=500)


@pytest.mark.parametrize(
    'before, after',
    [
        (
            dict(type='MultiStepLR', begin=0, end=12, milestones=[8, 11]),
            dict(type='MultiStepLR', begin=0, end=24, milestones=[16, 22]),
        ),
        (
            dict(type='CosineAnnealingLR', T_max=12),
            dict(type='CosineAnnealingLR', T_max=24),
        ),
        (
            dict(type='CosineAnnealingLR', begin=6, end=12, T_max=6),
            dict(type='CosineAnnealingLR', begin=12, end=24, T_max=12),
        ),
        (
            dict(type='LinearLR', start_factor=1, end_factor=0.1, end=12),
            dict(type='LinearLR', start_factor=1, end_factor=0.1, end=24),
        ),
        (dict(type='StepLR', step_size=4), dict(type='StepLR', step_size=8)),
    ],
)
def test_a_schedule_is_stretched_without_its_warm_up(before, after):
    hook = dict(type='PipelineSwitchHook', switch_epoch=10)
    cfg = scheduled(WARM_UP, before, hooks=[hook])
    stretch(cfg, 2)
    assert cfg.train_cfg == dict(max_epochs=24, val_interval=1)
    assert cfg.param_scheduler == [WARM_UP, after]
    assert cfg.custom_hooks[0].switch_epoch == 20


def test_what_follows_the_warm_up_still_follows_it():
    warm_up = dict(type='mmdet.QuadraticWarmupLR', begin=0, end=5)
    cfg = scheduled(
        warm_up,
        dict(type='CosineAnnealingLR', begin=5, end=285, T_max=280),
        dict(type='ConstantLR', factor=1, begin=285, end=300),
        loop=dict(max_epochs=300),
    )
    stretch(cfg, 2)
    assert cfg.param_scheduler == [
        warm_up,
        dict(type='CosineAnnealingLR', begin=5, end=570, T_max=565),
        dict(type='ConstantLR', factor=1, begin=570, end=600),
    ]
    cfg = scheduled(
        WARM_UP,
        dict(type='CosineAnnealingLR', by_epoch=False, begin=500, end=1000, T_max=500),
        loop=dict(max_iters=1000),
    )
    stretch(cfg, 1.5)
    assert cfg.train_cfg.max_iters == 1500
    assert cfg.param_scheduler == [
        WARM_UP,
        dict(type='CosineAnnealingLR', by_epoch=False, begin=500, end=1500, T_max=1000),
    ]


def test_schedules_that_cannot_be_stretched():
    with pytest.raises(InputError, match='--lengths 2 .* ExponentialLR: its'):
        stretch(scheduled(dict(type='ExponentialLR', gamma=0.9)), 2)
    cfg = scheduled(
        dict(type='LinearLR', end=5, start_factor=0.1),
        dict(type='CosineAnnealingLR', begin=5, end=12, T_max=7),
    )
    with pytest.raises(InputError, match='--lengths 0.08 is too short'):
        stretch(cfg, 0.08)
    # 3.6 epochs would be 4, which is another multiple.
    with pytest.raises(InputError, match='--lengths 0.3 .* is 3.6,.* Try .* 0.333'):
        stretch(scheduled(), 0.3)
    stretch(scheduled(), 1 / 3)


def initialized(plan, run):
    """The model of a run as its training starts."""
    cfg = plan._config(run)
    model = build(cfg.model)
    model.init_weights()
    load_checkpoint(model, cfg.load_from, 'cpu', logger='silent')
    return model


def test_runs_of_a_seed_share_their_initial_weights(digits, tmp_path):
    norms = ('MimicNorm', 'BN', 'psBN', 'GN')
    plan = comparison(digits, tmp_path, norms, seeds=(0, 1))
    plan.write()
    models = {(run.norm, run.seed): initialized(plan, run) for run in plan.runs}
    states = {key: model.state_dict() for key, model in models.items()}
    body, head = 'backbone.layer1.0.conv1.weight', 'roi_head.bbox_head.fc_cls'
    for key in (body, f'{head}.weight', 'rpn_head.rpn_cls.weight'):
        bn, psbn, gn, other = (
            states[which][key]
            for which in (('BN', 0), ('psBN', 0), ('GN', 0), ('BN', 1))
        )
        assert torch.equal(bn, psbn) and torch.equal(bn, gn)
        assert not torch.equal(bn, other)
        assert torch.equal(bn, states['MimicNorm', 0][key]) == (key != body)
    # MimicNorm keeps its own start: centered filters, He-normal.
    for layer in models['MimicNorm', 0].modules():
        if isinstance(layer, MimicConv):
            assert layer.weight.mean((1, 2, 3)).abs().max() < 1e-6
            assert (layer.bias == 0).all()
    # Norm layers start as they do elsewhere, psBN's bias at alpha.
    assert (states['psBN', 0]['backbone.bn1.weight'] == 1).all()
    assert (states['psBN', 0]['backbone.bn1.bias'] > 0).all()
    assert (states['MimicNorm', 0][f'{head}.running_var'] == 1).all()
    # Two files for a seed: with the body and without it.
    assert len(list(Path(tmp_path).glob('initial_*.pth'))) == 4


def test_runs_of_a_seed_share_the_order_of_the_data(digits, tmp_path):
    plan = comparison(digits, tmp_path, ('BN', 'MimicNorm'), seeds=(0, 1))
    plan.write()
    orders = {}
    for run in plan.runs:
        cfg = plan._config(run)
        loader = Runner.build_dataloader(
            dict(cfg.train_dataloader, num_workers=0, persistent_workers=False),
            seed=cfg.randomness.seed,
        )
        orders[run.norm, run.seed] = [
            sample.img_id for batch in loader for sample in batch['data_samples']
        ]
    assert orders['BN', 0] == orders['MimicNorm', 0] != orders['BN', 1]
