"""The demo's task: real digits on photographs, in COCO2017's layout."""

import filecmp
import json
import shutil
import sys

import cv2
import numpy as np
import pytest
from helpers import demo_config, of_digits
from pycocotools.coco import COCO

from mmpsbn.config.data import check_data, find_images
from mmpsbn.config.reading import TRAINING_LOADERS
from mmpsbn.datasets import make_digits, read_classes
from mmpsbn.datasets.digits import SPLITS, _draw_digits, material
from mmpsbn.errors import InputError


def test_has_coco2017_s_layout(digits):
    numbers = dict(train2017=16, val2017=8)
    for split in SPLITS:
        coco = COCO(str(digits / 'annotations' / f'instances_{split}.json'))
        assert len(coco.imgs) == numbers[split]
        assert [c['name'] for c in coco.cats.values()] == list('0123456789')
        for image in coco.imgs.values():
            pixels = cv2.imread(str(digits / split / image['file_name']))
            assert pixels.shape == (image['height'], image['width'], 3)
            assert 1 <= len(coco.getAnnIds(image['id'])) <= 4
        for item in coco.anns.values():
            x, y, width, height = item['bbox']
            assert item['area'] == width * height and not item['iscrowd']
            assert 0 <= x < x + width <= 160 and 0 <= y < y + height <= 160


def test_a_box_is_tight_around_its_digit():
    digits, labels, _ = material('train2017')
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = np.zeros((160, 160, 3), np.uint8)
        drawn = _draw_digits(scene, digits, labels, rng)
        ink = scene.max(2)
        for (x, y, width, height), _ in drawn:
            digit = ink[y : y + height, x : x + width]
            edges = digit[0], digit[-1], digit[:, 0], digit[:, -1]
            assert min(edge.max() for edge in edges) > 0.3 * 170 - 1
            digit[:] = 0
        assert not ink.any()


def test_boxes_of_a_scene_do_not_overlap(digits):
    coco = COCO(str(digits / 'annotations' / 'instances_train2017.json'))
    for image in coco.imgs:
        boxes = [item['bbox'] for item in coco.loadAnns(coco.getAnnIds(image))]
        for index, (x, y, width, height) in enumerate(boxes):
            for a, b, c, d in boxes[:index]:
                assert x >= a + c or a >= x + width or y >= b + d or b >= y + height


def test_no_digit_and_no_photograph_serves_both_splits():
    (train, _, strips), (val, _, others) = map(material, SPLITS)
    assert len(train) + len(val) == 1797
    for strip, other in zip(strips, others):
        assert strip.shape[1] + other.shape[1] == 640


def test_equal_arguments_give_equal_files(digits, tmp_path):
    again, other = tmp_path / 'again', tmp_path / 'other'
    make_digits(str(again), train=16, val=8)
    make_digits(str(other), train=16, val=8, seed=1)
    for split in SPLITS:
        file = f'annotations/instances_{split}.json'
        assert filecmp.cmp(digits / file, again / file, shallow=False)
        assert not filecmp.cmp(digits / file, other / file, shallow=False)
        for image in (digits / split).iterdir():
            assert filecmp.cmp(image, again / split / image.name, shallow=False)


@pytest.mark.parametrize(
    'argument',
    [dict(train=0), dict(val=0), dict(size=10), dict(size=500), dict(seed=-1)],
)
def test_refuses_numbers_out_of_range(argument, tmp_path):
    with pytest.raises(ValueError, match='must be at least 1'):
        make_digits(str(tmp_path / 'out'), **argument)
    assert not any(tmp_path.iterdir())


def test_refuses_to_overwrite(tmp_path):
    with pytest.raises(FileExistsError, match='exists; remove it'):
        make_digits(str(tmp_path))


def test_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    with pytest.raises(ModuleNotFoundError, match='pip install scikit-learn'):
        make_digits(str(tmp_path / 'out'))
    assert not (tmp_path / 'out').exists()


def test_read_classes(digits, tmp_path):
    assert read_classes(str(tmp_path)) == tuple('0123456789')
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations' / 'instances_val2017.json').write_text(
        json.dumps(dict(categories=[dict(id=3, name='cat')]))
    )
    assert read_classes(str(tmp_path)) == ('cat',)


def test_images_that_represent_a_data_set_are_of_all_classes(tmp_path):
    for kind in 'ab':
        for number in range(40):
            file = tmp_path / f'{kind}_{number}.png'
            cv2.imwrite(str(file), np.zeros((1, 1, 3), np.uint8))
    found = find_images(None, str(tmp_path), 32)
    kinds = [name.rpartition('/')[2][0] for name in found]
    assert len(set(found)) == 32 and min(map(kinds.count, 'ab')) > 8
    # Images to verify on are others than those that select channels.
    assert find_images(None, str(tmp_path), 48)[:32] == found
    assert len(find_images(None, str(tmp_path), 100)) == 80


def test_training_images_are_those_of_the_annotations(digits, tmp_path):
    for split in SPLITS:
        shutil.copytree(digits / split, tmp_path / 'all' / split)
    cfg = demo_config('faster-rcnn')
    file = tmp_path / 'train.json'
    content = json.loads((digits / 'annotations/instances_train2017.json').read_text())
    for image in content['images']:
        image['file_name'] = f'train2017/{image["file_name"]}'
    file.write_text(json.dumps(content))
    cfg.train_dataloader.dataset.update(
        data_root='', ann_file=str(file), data_prefix=dict(img=f'{tmp_path}/all')
    )
    found = find_images(cfg, None, 100)
    assert sorted(found) == sorted(map(str, tmp_path.glob('all/train2017/*.jpg')))
    cfg.train_dataloader.dataset.data_prefix = {}  # Without a root, either.
    check_data(cfg, ['train_dataloader'])
    # A folder of images alone is enough for tools that run a model.
    cfg.train_dataloader.dataset.update(
        ann_file='missing.json', data_prefix=dict(img=f'{tmp_path}/all/val2017')
    )
    assert len(find_images(cfg, None, 100)) == 8


@pytest.mark.parametrize('kind', ['CocoMetric', 'mmdet.CocoMetric'])
@pytest.mark.parametrize('other', ['instances_train2017', 'missing'])
def test_an_evaluator_has_the_ground_truth_of_its_images(other, kind, digits, tmp_path):
    cfg = of_digits(demo_config('faster-rcnn'), digits)
    cfg.val_evaluator.type = kind
    shutil.copy(cfg.val_evaluator.ann_file, tmp_path / 'copy.json')
    cfg.val_evaluator.ann_file = str(tmp_path / 'copy.json')
    check_data(cfg, TRAINING_LOADERS)
    cfg.val_evaluator.ann_file = f'{digits}/annotations/{other}.json'
    with pytest.raises(InputError, match=f'val_dataloader reads .*{other}.json'):
        check_data(cfg, TRAINING_LOADERS)
