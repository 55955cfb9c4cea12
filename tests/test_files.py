"""Folders of output are written completely or not at all."""

import pytest

from mmpsbn.errors import InputError
from mmpsbn.files import output_files, output_folder


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob('*')
        if path.is_file()
    }


def write(folder, **files):
    for name, text in files.items():
        with open(f'{folder}/{name}', 'w') as file:
            file.write(text)


def test_files_are_moved_and_others_stay(tmp_path):
    write(tmp_path, a='old', c='other')
    with output_folder(str(tmp_path)) as folder:
        write(folder, a='new', b='new')
        assert contents(tmp_path)['a'] == 'old'
    assert contents(tmp_path) == dict(a='new', b='new', c='other')


def test_one_blocked_file_leaves_all_as_they_were(tmp_path):
    """b cannot be replaced, because it is a folder; a would be moved before it."""
    write(tmp_path, a='old')
    (tmp_path / 'b' / 'inside').mkdir(parents=True)
    with pytest.raises(InputError, match='cannot be written.*were not changed'):
        with output_folder(str(tmp_path)) as folder:
            write(folder, _='new', a='new', b='new')
    assert contents(tmp_path) == dict(a='old')


def test_an_error_in_the_body_is_not_about_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='image.jpg'):
        with output_files(str(tmp_path / 'out.pth')) as (file,):
            write(tmp_path, unrelated='')
            open(tmp_path / 'image.jpg')
    with pytest.raises(ValueError), output_folder(str(tmp_path)) as folder:
        write(folder, a='new')
        raise ValueError
    assert contents(tmp_path) == dict(unrelated='')


def test_a_full_disk_in_the_body_is_about_the_folder(tmp_path):
    with pytest.raises(InputError, match='No space left'):
        with output_files(str(tmp_path / 'out.pth')):
            raise OSError(28, 'No space left on device')
    assert not contents(tmp_path)
