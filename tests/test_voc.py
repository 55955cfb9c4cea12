"""Data sets other than CocoDataset: PASCAL VOC's layout, and wrappers."""

from types import SimpleNamespace

import pytest
import torch
from helpers import FASTER, ROOT, SHORT, recipe, run, use_few_rois, write_voc
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.hub import get_config

from mmpsbn.compare import Comparison, replace_norm
from mmpsbn.config.data import find_images
from mmpsbn.config.reading import read_config
from mmpsbn.detectors.build import build_model
from mmpsbn.errors import InputError
from mmpsbn.hooks.data_check_hook import DataCheckHook


def dataset(root, year, split, **settings):
    return dict(
        type='VOCDataset',
        data_root=f'{root}/',
        ann_file=f'VOC{year}/ImageSets/Main/{split}.txt',
        data_prefix=dict(sub_data_root=f'VOC{year}/'),
        metainfo=dict(classes=tuple('0123456789')),
        **settings,
    )


@pytest.fixture
def voc(digits, tmp_path):
    """A data set and a config, as MMDetection's for VOC2007 and VOC2012."""
    root = write_voc(digits, tmp_path / 'VOCdevkit')
    cfg = Config.fromfile(ROOT / FASTER)
    train = dict(
        type='RepeatDataset',
        times=1,
        dataset=dict(
            type='ConcatDataset',
            ignore_keys=['dataset_type'],
            datasets=[
                dataset(
                    root,
                    year,
                    'train',
                    pipeline=cfg.train_pipeline,
                    filter_cfg=dict(filter_empty_gt=True),
                )
                for year in (2007, 2012)
            ],
        ),
    )
    cfg.data_root = f'{root}/'
    cfg.train_dataloader.dataset = train
    cfg.val_evaluator = cfg.test_evaluator = dict(
        type='VOCMetric', metric='mAP', eval_mode='11points'
    )
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset = dataset(
            root, 2007, 'val', test_mode=True, pipeline=cfg.test_pipeline
        )
    cfg.merge_from_dict(
        dict(option.split('=', 1) for option in SHORT if 'interval' in option)
    )
    file = tmp_path / 'voc.py'
    cfg.dump(file)
    return root, file


@pytest.mark.slow
def test_the_recipe_for_voc_trains_and_evaluates(digits, tmp_path):
    (tmp_path / 'recipe.py').write_text(recipe('PASCAL VOC'))
    cfg = Config.fromfile(tmp_path / 'recipe.py')
    cfg.model.backbone.update(depth=18, init_cfg=None)
    cfg.model.neck.in_channels = [64, 128, 256, 512]
    cfg.model.roi_head.bbox_head.num_classes = 10
    use_few_rois(cfg)
    cfg.train_dataloader.update(batch_size=8)
    cfg.train_dataloader.dataset.times = 1
    write_voc(digits, tmp_path / 'VOCdevkit')
    parts = cfg.train_dataloader.dataset.dataset.datasets
    for part in (*parts, cfg.val_dataloader.dataset, cfg.test_dataloader.dataset):
        part.data_root = f'{tmp_path}/VOCdevkit/'
        part.ann_file = part.ann_file.replace('trainval', 'train').replace(
            'test', 'val'
        )
        part.metainfo = dict(classes=tuple('0123456789'))
        part.pop('filter_cfg', None)
        for step in part.pipeline:
            if step.type == 'Resize':
                step.scale = (96, 96)
    cfg.dump(tmp_path / 'config.py')
    status, output = run(
        'tools/train.py', tmp_path / 'config.py', '--work-dir', tmp_path
    )
    assert status == 0, output[-3000:]
    assert 'pascal_voc/mAP' in output
    assert (tmp_path / 'epoch_1.pth').exists()


@pytest.mark.slow
@pytest.mark.usefixtures('forked_runs')
def test_a_comparison_by_voc_with_adamw(voc, tmp_path):
    root, config = voc
    cfg = read_config(str(config))
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.default_hooks.logger.interval = 1
    optimizer = dict(type='AdamW', lr=1e-3, weight_decay=0.05)
    cfg.optim_wrapper.optimizer = optimizer
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys=dict(backbone=dict(lr_mult=0.5)))
    plan = Comparison(
        cfg,
        {'BN+LastBN': replace_norm(cfg, 'BN+LastBN')},
        [],
        [0],
        str(tmp_path / 'work'),
    )
    plan.write()
    (one,) = plan.runs
    assert plan.run(one, lambda share: None), plan.failures
    assert one.name == 'BN+LastBN_lr0.001_seed0'
    assert plan.score_names == ['pascal_voc/mAP', 'pascal_voc/AP50']
    assert set(plan.score_names) <= set(plan.result(one)['metrics'])
    assert list(plan.curve(one, plan.score_names[0])) == [1]


def test_images_that_decide_are_those_of_training(voc):
    root, config = voc
    images = find_images(read_config(str(config)), None, 20)
    assert len(images) == 8
    assert all('VOC2007/JPEGImages/train_' in image for image in images)


def replaced(old, new):
    return lambda text: text.replace(old, new)


LIST = 'VOC2012/ImageSets/Main/train.txt'
FIRST = 'VOC2012/Annotations/train_000002.xml'
IMAGE = 'VOC2012/JPEGImages/train_000002.jpg'


@pytest.mark.parametrize(
    'file, change, words',
    [
        (LIST, None, [LIST, 'Put PASCAL VOC under']),
        (LIST, lambda text: '', [LIST, 'is empty']),
        (FIRST, None, [FIRST, 'FileNotFoundError', LIST]),
        (FIRST, lambda text: text[:50], [FIRST, 'ParseError']),
        (FIRST, replaced('xmin', 'x'), [FIRST, 'bndbox of xmin']),
        (FIRST, replaced('name>', 'n>'), [FIRST, 'has a name']),
        (IMAGE, None, [IMAGE, 'does not exist', LIST]),
        (IMAGE, lambda text: 'no image', [IMAGE, 'cannot be read', LIST]),
    ],
)
def test_files_of_voc_that_cannot_be_used(file, change, words, voc, refused, tmp_path):
    root, config = voc
    if change is None:
        (root / file).unlink()
    else:
        (root / file).write_text(change((root / file).read_text(errors='replace')))
    message = refused('tools/train.py', config, '--work-dir', tmp_path / 'w')
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    'tool, part, words',
    [
        ('train', 'VOC2012/Annotations/*.xml', ['no image of', LIST, 'metainfo']),
        (
            'test',
            'VOC2007/Annotations/val*.xml',
            ['none of the 8 images of', 'val.txt has a box of a class in metainfo'],
        ),
    ],
)
def test_objects_of_voc_of_other_classes(tool, part, words, voc, refused, tmp_path):
    root, config = voc
    for path in root.glob(part):
        path.write_text(path.read_text().replace('<name>', '<name>digit '))
    arguments = []
    if tool == 'test':
        arguments = [tmp_path / 'a.pth']
        model = build_model(Config(), read_config(str(config)).model)
        torch.save(dict(state_dict=model.state_dict()), *arguments)
    message = refused(
        f'tools/{tool}.py', config, *arguments, '--work-dir', tmp_path / 'w'
    )
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    'wrap',
    [
        lambda inner: dict(type='RepeatDataset', times=2, dataset=inner),
        lambda inner: dict(
            type='ClassBalancedDataset', oversample_thr=0.1, dataset=inner
        ),
        lambda inner: dict(type='ConcatDataset', datasets=[inner, inner]),
        lambda inner: dict(type='MultiImageMixDataset', dataset=inner, pipeline=[]),
    ],
)
def test_classes_of_a_wrapped_data_set_are_checked(wrap, digits):
    cfg = Config.fromfile(ROOT / FASTER)
    inner = dict(
        cfg.train_dataloader.dataset,
        data_root=f'{digits}/',
        metainfo=dict(classes=('0', '1', 'two')),
    )
    inner['pipeline'] = []
    runner = SimpleNamespace(
        model=build_model(cfg),
        train_dataloader=SimpleNamespace(dataset=DATASETS.build(wrap(inner))),
    )
    with pytest.raises(InputError, match='has 2 of the 3 classes'):
        DataCheckHook().before_train(runner)


def test_parts_of_other_classes_are_checked_one_by_one(digits):
    cfg = Config.fromfile(ROOT / FASTER)
    inner = dict(cfg.train_dataloader.dataset, data_root=f'{digits}/')
    inner['pipeline'] = []
    other = dict(inner, metainfo=dict(classes=('0', '1')))
    runner = SimpleNamespace(
        model=build_model(cfg),
        train_dataloader=SimpleNamespace(
            dataset=DATASETS.build(dict(type='ConcatDataset', datasets=[inner, other]))
        ),
    )
    with pytest.raises(InputError, match='num_classes of the head to 2'):
        DataCheckHook().before_train(runner)


def head_checked(config, classes, **change):
    """Whether the hook refuses a head of MMDetection's for some classes."""
    cfg = get_config(f'mmdet::{config}')
    cfg.merge_from_dict(dict(model=change))
    model = cfg.model
    model.backbone.init_cfg = None
    dataset = SimpleNamespace(metainfo=dict(classes=tuple(map(str, range(classes)))))
    runner = SimpleNamespace(
        model=build_model(Config(), model),
        val_dataloader=SimpleNamespace(dataset=dataset),
    )
    DataCheckHook().before_val(runner)


@pytest.mark.parametrize(
    'config',
    [
        'guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco.py',
        'faster_rcnn/faster-rcnn_r50_fpn_fcos-rpn_1x_coco.py',
    ],
)
def test_proposals_of_any_head_have_no_classes(config):
    head_checked(config, 80)


@pytest.mark.parametrize(
    'config, change, head',
    [
        (
            'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
            dict(roi_head=dict(bbox_head=dict(num_classes=3))),
            'roi_head.mask_head predicts 80',
        ),
        ('detr/detr_r50_8xb2-150e_coco.py', {}, 'bbox_head predicts 80'),
    ],
)
def test_heads_of_other_classes_are_refused(config, change, head):
    with pytest.raises(InputError, match=f'{head} classes, but .* has 3'):
        head_checked(config, 3, **change)
