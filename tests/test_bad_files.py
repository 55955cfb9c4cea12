"""Thousands of bad files: refused with an error message, or read unchanged."""

import copy
import functools
import io
import json
import operator
from contextlib import redirect_stdout

import mmcv
import numpy as np
import pytest
import torch
from helpers import cases, demo_config, places, psbn, trained_network
from hypothesis import given
from hypothesis import strategies as st
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.runner import save_checkpoint
from PIL import Image
from torch import Tensor

from mmpsbn.checkpoints.matching import load_weights
from mmpsbn.checkpoints.reading import Checkpoint, read_checkpoint
from mmpsbn.config.annotations import LAYOUT
from mmpsbn.config.data_errors import explain_data_errors
from mmpsbn.config.images import check_images
from mmpsbn.datasets import make_digits
from mmpsbn.detectors.build import build_model, load_images
from mmpsbn.errors import InputError


def equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) for key in one
    )


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    """A checkpoint as MMEngine's, and its bytes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('bad') / 'epoch_1.pth'
    save_checkpoint(
        dict(
            meta=dict(epoch=1),
            state_dict=trained_network(psbn()).state_dict(),
            optimizer=dict(param_groups=[dict(lr=0.1)]),
        ),
        str(path),
    )
    return path, path.read_bytes()


@pytest.mark.slow
@cases(1000)
@given(st.data())
def test_damaged_bytes(file, count, data):
    path, content = file
    where = data.draw(st.integers(0, len(content) - 1), 'where')
    kind = data.draw(st.sampled_from(['cut', 'flip', 'blank', 'repeat']))
    damaged = bytearray(content)
    if kind == 'cut':
        damaged = damaged[:where]
    elif kind == 'flip':
        damaged[where] ^= data.draw(st.integers(1, 255), 'bits')
    else:
        part = damaged[where : where + data.draw(st.integers(1, 600), 'length')]
        if kind == 'blank':
            damaged[where : where + len(part)] = bytes(len(part))
        else:
            damaged[where:where] = part
    bad = path.with_name('bad.pth')
    bad.write_bytes(damaged)
    expected = torch.load(io.BytesIO(content))['state_dict']
    count('tried')
    try:
        found = read_checkpoint(str(bad)).content['state_dict']
    except InputError:
        count('refused with an error message')
        return
    assert equal(found, expected)
    count('read as they were')


def other_shape(value):
    return torch.cat([value.reshape(-1), torch.zeros(1)])


def twins(key):
    return [key, f'4{key[1:]}'] if key[0] == '1' else [key]


CHANGES = {
    'transposed': lambda v: v.transpose(0, 1) if v.dim() > 1 else v,
    'half': lambda v: v.half() if v.is_floating_point() else v,
    'bfloat16': lambda v: v.bfloat16() if v.is_floating_point() else v,
    'double': lambda v: v.double() if v.is_floating_point() else v,
    'whole numbers': lambda v: v.long(),
    'complex': lambda v: v.to(torch.complex64),
    'larger': other_shape,
    'of no dimension': lambda v: torch.zeros(()),
    'empty': lambda v: v[:0] if v.dim() else v.new_zeros(0),
    'not finite': lambda v: (
        torch.full_like(v, torch.nan) if v.is_floating_point() else v
    ),
    'a number': lambda v: 3,
    'None': lambda v: None,
    'a list': lambda v: v.tolist(),
    'sparse': lambda v: v.to_sparse(),
    'on meta': lambda v: v.to('meta'),
}


@pytest.mark.slow
@cases(300)
@given(st.data())
def test_changed_state_dicts(count, data):
    torch.manual_seed(0)
    model = psbn()
    state = trained_network(psbn()).state_dict()
    original = copy.deepcopy(state)
    # Those of the shared layer are there twice.
    keys = st.sampled_from([key for key in state if key[0] != '4'])
    changed = {}
    for key in data.draw(st.sets(keys, max_size=2), 'changed'):
        kind = data.draw(st.sampled_from(sorted(CHANGES)), 'to')
        for key in twins(key):
            changed[key] = state[key] = CHANGES[kind](state[key])
    removed = [
        twin
        for key in data.draw(st.sets(keys, max_size=1), 'removed')
        for twin in twins(key)
    ]
    for key in removed:
        del state[key]
    for key in data.draw(
        st.sets(st.one_of(st.text(max_size=8), st.integers(), st.none()), max_size=1),
        'added',
    ):
        state[key] = torch.zeros(3)
    if data.draw(st.booleans(), 'module.'):
        state = {f'module.{key}': value for key, value in state.items()}
    count('tried')
    try:
        load_weights(model, Checkpoint('a.pth', state))
    except InputError:
        count('refused with an error message')
        return
    loaded = model.state_dict()
    assert all(key.endswith('num_batches_tracked') for key in removed)
    for key, value in original.items():
        if key in removed:
            continue
        given = changed.get(key, value)
        assert isinstance(given, Tensor) and given.shape == value.shape, key
        assert not given.is_complex() and not given.is_meta, key
        assert not given.is_sparse and not given.isnan().any(), key
        torch.testing.assert_close(
            loaded[key].double(), given.double(), rtol=1e-2, atol=1e-2
        )
    count('loaded as given')


# COCO's layout

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.lists(st.floats(-50, 200, width=16), max_size=5),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@pytest.fixture(scope='module')
def few(tmp_path_factory):
    """A config, the annotation file of its three images, and the content."""
    out = tmp_path_factory.mktemp('few') / 'digits'
    make_digits(str(out), train=3, val=1)
    whole = demo_config('faster-rcnn', 'psbn')
    cfg = Config(dict(train_dataloader=whole.train_dataloader))
    cfg.train_dataloader.dataset.data_root = f'{out}/'
    path = out / 'annotations' / 'instances_train2017.json'
    return cfg, path, json.loads(path.read_text())


@pytest.mark.slow
@cases(100)
@given(st.data())
def test_changed_annotations(few, count, data):
    cfg, path, content = few
    content = copy.deepcopy(content)
    known = list(places(content))
    for place in data.draw(
        st.lists(st.sampled_from(known), min_size=1, max_size=3), 'places'
    ):
        try:
            node = functools.reduce(operator.getitem, place[:-1], content)
            if data.draw(st.booleans(), 'removed'):
                del node[place[-1]]
            else:
                node[place[-1]] = data.draw(VALUES, 'value')
        except (LookupError, TypeError):
            pass  # An earlier change took this place away.
    path.write_text(json.dumps(content))
    count('tried')
    try:
        for sample in read(cfg):
            check_sample(sample)
    except InputError as error:
        assert str(path.parent.parent) in str(error)
        count('refused with an error message')
    else:
        count('gave boxes to learn from')


def read(cfg):
    """The samples of the training set, as the tools read it."""
    with explain_data_errors(cfg, ('train_dataloader',)):
        with redirect_stdout(io.StringIO()):
            dataset = DATASETS.build(copy.deepcopy(cfg.train_dataloader.dataset))
        return [dataset[index] for index in range(len(dataset))]


def changed(part, **fields):
    """A change of the first entry of a part; ``None`` removes a field."""

    def change(content):
        entry = content[part][0]
        for key, value in fields.items():
            if value is None:
                del entry[key]
            else:
                entry[key] = value

    return change


def twice(part):
    return lambda content: content[part].append(dict(content[part][0]))


WORDS = {
    **{
        f'no {field} of {part}': (changed(part, **{field: None}), f'has no {field}')
        for part, fields in LAYOUT.items()
        for field in fields
    },
    **{
        f"an id of '{part}' twice": (twice(part), 'which another entry has too')
        for part in LAYOUT
    },
    'no images': (lambda content: content.update(images=[]), 'lists no image'),
    'no boxes': (lambda content: content.update(annotations=[]), 'has no boxes'),
    'an unknown image': (
        changed('images', file_name='größe 大.jpg'),
        'größe 大.jpg does not exist',
    ),
    'a box of three': (
        changed('annotations', bbox=[1, 2, 3]),
        'but must be a list of x, y',
    ),
}
# The first box is left out, as MMDetection does it.
LEFT_OUT = {
    'outside of the image': changed('annotations', bbox=[500.0, 9.0, 20.0, 20.0]),
    'of a negative width': changed('annotations', bbox=[50.0, 9.0, -20.0, 20.0]),
    'of no width': changed('annotations', bbox=[50.0, 9.0, 0.0, 20.0]),
    'of no area': changed('annotations', area=0),
    'of a category that is not listed': changed('annotations', category_id=77),
    'of an image that is not listed': changed('annotations', image_id=77),
}


@pytest.mark.parametrize('kind', WORDS)
def test_annotations_that_cannot_be_read(kind, few):
    cfg, path, content = few
    content = copy.deepcopy(content)
    change, words = WORDS[kind]
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=words) as error:
        read(cfg)
    assert str(path.parent.parent) in str(error.value)


def boxes_of(samples):
    return sorted(len(sample['data_samples'].gt_instances) for sample in samples)


@pytest.mark.parametrize('kind', LEFT_OUT)
def test_boxes_that_are_left_out(kind, few):
    cfg, path, content = few
    path.write_text(json.dumps(content))
    before = sum(boxes_of(read(cfg)))
    content = copy.deepcopy(content)
    LEFT_OUT[kind](content)
    path.write_text(json.dumps(content))
    samples = read(cfg)
    for sample in samples:
        check_sample(sample)
    assert sum(boxes_of(samples)) == before - 1


def test_names_need_not_be_ascii(few):
    cfg, path, content = few
    cfg, content = copy.deepcopy(cfg), copy.deepcopy(content)
    image, name = content['images'][0], 'ünïcode 数.jpg'
    folder = path.parent.parent / 'train2017'
    (folder / name).write_bytes((folder / image['file_name']).read_bytes())
    image['file_name'] = name
    content['categories'][0]['name'] = 'nüll 零'
    dataset = cfg.train_dataloader.dataset
    dataset.metainfo.classes = ('nüll 零', *dataset.metainfo.classes[1:])
    for ascii_only in (True, False):
        path.write_text(json.dumps(content, ensure_ascii=ascii_only), encoding='utf-8')
        samples = read(cfg)
        assert len(samples) == 3
        assert any(sample['data_samples'].img_path.endswith(name) for sample in samples)


def check_sample(sample):
    """Boxes that can be learned from."""
    truth = sample['data_samples'].gt_instances
    boxes = truth.bboxes.tensor
    height, width = sample['data_samples'].img_shape
    assert boxes.isfinite().all()
    assert ((truth.labels >= 0) & (truth.labels < 10)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


# Images


def checkers(size=64):
    """An image of blocks, which survive JPEG's halved color."""
    colors = np.random.default_rng(0).integers(0, 256, (4, 4, 3))
    blocks = np.kron(colors, np.ones((size // 4, size // 4, 1)))
    return Image.fromarray(blocks.astype(np.uint8))


ODD = {
    'grey.jpg': lambda image: image.convert('L'),
    'four colors.jpg': lambda image: image.convert('CMYK'),
    'transparent.png': lambda image: image.convert('RGBA'),
    'palette.png': lambda image: image.convert('P'),
    'one bit.png': lambda image: image.convert('1'),
    '16 bit.png': lambda image: Image.fromarray(
        np.asarray(image.convert('L')).astype(np.uint16) * 257
    ),
    'one pixel.jpg': lambda image: image.resize((1, 1)),
    'a line.png': lambda image: image.resize((64, 1)),
    'ünïcode 数.png': lambda image: image,
}


@pytest.fixture(scope='module')
def detector(digits):
    cfg = demo_config('faster-rcnn', 'psbn')
    return cfg, build_model(cfg)


@pytest.mark.parametrize('name', ODD)
def test_odd_images_are_read_as_they_look(name, detector, tmp_path):
    image, file = ODD[name](checkers()), str(tmp_path / name)
    image.save(file)
    found = mmcv.imread(file)[..., ::-1].astype(int)
    if name.startswith('16'):
        image = checkers().convert('L')
    assert abs(found - np.asarray(image.convert('RGB'))).max() <= 2
    check_images([file])
    cfg, model = detector
    data = load_images(cfg, [file], model)
    assert data['inputs'].isfinite().all()
    with torch.no_grad():
        (found,) = model(**data, mode='predict')
    assert found.ori_shape == np.asarray(image).shape[:2]
    assert found.pred_instances.bboxes.isfinite().all()


@pytest.mark.parametrize('content', [b'', b'no image', None])
def test_what_is_no_image_is_named(content, tmp_path):
    file = tmp_path / 'bad.jpg'
    checkers().save(file)
    file.write_bytes(file.read_bytes()[:80] if content is None else content)
    with pytest.raises(InputError, match='bad.jpg cannot be read'):
        check_images([str(file)])
