"""Files and folders that a user may not read or write: an error message."""

import os
import shutil

import pytest
import torch
from helpers import FASTER, as_ordinary_user, build, demo_config
from mmengine.runner import save_checkpoint

from mmpsbn.checkpoints.reading import find_latest, read_checkpoint
from mmpsbn.errors import InputError


@pytest.fixture
def weights(tmp_path):
    model = build(demo_config('faster-rcnn', 'psbn').model)
    save_checkpoint(dict(state_dict=model.state_dict()), str(tmp_path / 'a.pth'))
    return tmp_path / 'a.pth'


def test_permissions_hold(tmp_path):
    (tmp_path / 'a').touch(0o400)
    with as_ordinary_user(), pytest.raises(PermissionError):
        (tmp_path / 'a').write_text('')


@pytest.mark.parametrize(
    'tool, option', [('test', None), ('train', '--resume'), ('train', 'load_from')]
)
def test_an_unreadable_checkpoint_is_not_called_damaged(
    tool, option, refused, weights, digits, tmp_path
):
    weights.chmod(0)
    arguments, options = [], []
    if option == 'load_from':
        options = [f'load_from={weights}']
    else:
        arguments = [option, weights] if option else [weights]
    with as_ordinary_user():
        message = refused(
            f'tools/{tool}.py',
            FASTER,
            *arguments,
            '--work-dir',
            tmp_path,
            data=digits,
            options=options,
        )
    assert f'{weights} cannot be read' in message
    assert 'Permission denied' in message and 'damaged' not in message


def test_resume_does_not_pass_over_an_unreadable_checkpoint(tmp_path):
    for number in (1, 2):
        file = tmp_path / f'epoch_{number}.pth'
        torch.save(dict(state_dict={}), file)
        os.utime(file, (number, number))
    assert find_latest(str(tmp_path)).path == str(file)
    file.chmod(0)
    with as_ordinary_user(), pytest.raises(InputError, match='epoch_2.pth'):
        find_latest(str(tmp_path))


def test_a_download_that_cannot_be_kept(url, tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'served' / 'a.pth')
    (tmp_path / 'home').mkdir(0o500)
    with as_ordinary_user(), pytest.raises(InputError, match='TORCH_HOME'):
        read_checkpoint(f'{url}/a.pth')


@pytest.mark.parametrize(
    'make', [lambda path: path.mkdir(0o500), lambda path: path.parent.chmod(0o500)]
)
def test_a_read_only_work_dir(make, refused, digits, tmp_path):
    make(tmp_path / 'work')
    with as_ordinary_user():
        message = refused(
            'tools/train.py', FASTER, '--work-dir', tmp_path / 'work', data=digits
        )
    assert 'cannot be written' in message and '--work-dir' in message
    tmp_path.chmod(0o700)


def test_a_file_of_another_user_in_the_work_dir(refused, digits, tmp_path):
    file = tmp_path / os.path.basename(FASTER)
    file.touch(0o400)
    with as_ordinary_user():
        message = refused('tools/train.py', FASTER, '--work-dir', tmp_path, data=digits)
    assert f'{file}): Permission denied' in message


@pytest.mark.parametrize(
    'name', ['annotations/instances_train2017.json', 'train2017/000000000003.jpg']
)
def test_unreadable_data(name, refused, digits, tmp_path):
    shutil.copytree(digits, tmp_path / 'data')
    (tmp_path / 'data' / name).chmod(0)
    with as_ordinary_user():
        message = refused(
            'tools/train.py',
            FASTER,
            '--work-dir',
            tmp_path / 'work',
            data=tmp_path / 'data',
        )
    assert f'{name} cannot be read' in message


def test_an_unreadable_config(refused, tmp_path):
    (tmp_path / 'config.py').touch(0)
    with as_ordinary_user():
        message = refused('tools/train.py', tmp_path / 'config.py')
    assert f'{tmp_path}/config.py): Permission denied' in message


@pytest.mark.parametrize('tool', ['analyze_collapse', 'convert', 'infer'])
def test_a_read_only_output_folder(tool, refused, weights, digits, tmp_path):
    out = tmp_path / 'out'
    out.mkdir(0o500)
    images = digits / 'val2017'
    arguments = {
        'analyze_collapse': (
            FASTER,
            weights,
            '--images',
            images,
            '--number',
            1,
            '--out',
            out,
        ),
        'convert': (FASTER, weights, '--to', 'psbn', '--out', out / 'b.pth'),
        'infer': (next(images.glob('*.jpg')), FASTER, weights, '--out-dir', out),
    }[tool]
    with as_ordinary_user():
        message = refused(f'tools/{tool}.py', *arguments)
    assert f'{out} cannot be written' in message
