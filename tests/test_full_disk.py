"""A disk that is full while files are written: an error, and the old files."""

import json

import mmcv
import numpy as np
import pytest
import torch
from helpers import FASTER, build, comparison, demo_config, full_disk, needs_onnx

from mmpsbn.compare import TrainingCost, write_report
from mmpsbn.datasets import make_digits
from mmpsbn.errors import FULL, InputError
from mmpsbn.files import output_files, output_folder, write_atomically

# Configs fit, of which MMEngine writes copies to read them.
CONFIGS = 20_000


def contents(folder):
    """Of all files, and nothing but files, by their places."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


@pytest.fixture
def old(tmp_path):
    """A folder of an earlier file."""
    (tmp_path / 'old').mkdir()
    write_atomically(tmp_path / 'old' / 'a.txt', b'earlier')
    return tmp_path / 'old'


def test_a_file_is_whole_or_as_it_was(old):
    with full_disk(), pytest.raises(OSError) as error:
        write_atomically(old / 'a.txt', b'0' * 1000)
    assert error.value.errno in FULL
    assert [p.read_text() for p in old.iterdir()] == ['earlier']


@pytest.mark.parametrize('large', ['a.txt', 'deep/b.txt'])
def test_files_of_a_folder_are_whole_or_as_they_were(large, old):
    with full_disk(), pytest.raises(InputError, match='cannot be written'):
        with output_folder(str(old)) as out:
            for name in ('a.txt', 'deep/b.txt'):
                path = old / out / name
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b'0' * (1000 if name == large else 10))
    assert [p.read_text() for p in old.iterdir()] == ['earlier']
    with output_folder(str(old)) as out:
        (old / out / 'deep').mkdir()
        (old / out / 'deep' / 'b.txt').write_text('new')
    assert contents(old) == {
        path.relative_to(old): text
        for path, text in (
            (old / 'a.txt', b'earlier'),
            (old / 'deep' / 'b.txt', b'new'),
        )
    }


def test_a_report(digits, tmp_path):
    plan = comparison(digits, tmp_path / 'work')
    plan.write()
    for run in plan.runs:
        plan.folder(run).mkdir()
        (plan.folder(run) / 'result.json').write_text(
            json.dumps(dict(metrics={'coco/bbox_mAP': 0.5}, seconds=1.0))
        )
    costs = {norm: TrainingCost(1.0, 1.0, 1.0, 1.0, None, 8) for norm in plan.cfgs}
    assert write_report(plan, costs, 'first').name == 'report.html'
    before = contents(tmp_path)
    with full_disk(5000), pytest.raises(InputError, match='cannot be writ'):
        write_report(plan, costs, 'second')
    assert contents(tmp_path) == before
    write_report(plan, costs, 'second')
    changed = contents(tmp_path)
    assert changed.keys() == before.keys() and changed != before


@needs_onnx
def test_an_onnx_file(old):
    pytest.importorskip('onnxscript')
    program = torch.onnx.export(
        torch.nn.Linear(40, 40), (torch.zeros(1, 40),), dynamo=True, verbose=False
    )
    with full_disk(), pytest.raises(InputError, match='cannot be written'):
        with output_files(str(old / 'a.txt')) as (file,):
            program.save(file)
    assert [p.read_text() for p in old.iterdir()] == ['earlier']


@pytest.mark.parametrize('tool', ['analyze_collapse', 'infer'])
def test_what_a_tool_writes(tool, refused, tmp_path):
    weights, out = tmp_path / 'a.pth', tmp_path / 'out'
    torch.save(
        dict(state_dict=build(demo_config('faster-rcnn', 'psbn').model).state_dict()),
        weights,
    )
    image = tmp_path / 'images' / 'a.jpg'
    image.parent.mkdir()
    mmcv.imwrite(np.random.default_rng(0).integers(0, 256, (400, 400, 3)), str(image))
    old = out / ('collapse.json' if tool[0] == 'a' else 'preds/a.json')
    old.parent.mkdir(parents=True)
    old.write_text('earlier')
    arguments = (
        (FASTER, weights, '--images', image.parent, '--out', out)
        if tool[0] == 'a'
        else (image, FASTER, weights, '--out-dir', out)
    )
    with full_disk(CONFIGS):
        message = refused(f'tools/{tool}.py', *arguments)
    assert f'{out} cannot be written: File too large' in message
    assert contents(out) == {old.relative_to(out): b'earlier'}


def test_a_run_that_begins(refused, digits, tmp_path):
    with full_disk():
        message = refused('tools/train.py', FASTER, '--work-dir', tmp_path, data=digits)
    assert 'nothing more can be written' in message


def test_the_demo_s_data(tmp_path):
    with full_disk(1000), pytest.raises(OSError) as error:
        make_digits(str(tmp_path / 'digits'), train=2, val=1)
    assert error.value.errno in FULL
    assert not (tmp_path / 'digits').exists()
