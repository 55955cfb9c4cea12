"""Code in a checkpoint never runs, whatever reads it."""

import os
import pickle

import pytest
import torch
from helpers import FASTER, MIMIC_FASTER
from mmengine.runner import CheckpointLoader

from mmpsbn.checkpoints.reading import read_checkpoint, safe_loading
from mmpsbn.errors import InputError

# What each tool is called with; {file} is the checkpoint.
COMMANDS = {
    'train --resume': ('train', FASTER, '--resume', '{file}'),
    'train --resume, of the work dir': ('train', FASTER, '--resume'),
    'test': ('test', FASTER, '{file}'),
    'convert --to bn': (
        'convert',
        FASTER,
        '{file}',
        '--to',
        'bn',
        '--out',
        '{out}.pth',
    ),
    'convert --to psbn': (
        'convert',
        FASTER,
        '{file}',
        '--to',
        'psbn',
        '--out',
        '{out}.pth',
    ),
    'convert --to mimicnorm': (
        'convert',
        MIMIC_FASTER,
        '{file}',
        '--to',
        'mimicnorm',
        '--out',
        '{out}.pth',
    ),
    'analyze_collapse': ('analyze_collapse', FASTER, '{file}'),
    'infer': ('infer', '{data}/val2017', FASTER, '{file}', '--out-dir', '{out}'),
    'prune': ('prune', FASTER, '{file}', '--out', '{out}'),
    'export_onnx': ('export_onnx', FASTER, '{file}', '--out', '{out}.onnx'),
}
# Tools whose configs name checkpoints, and the settings that do.
NAMED = [
    (tool, option)
    for tool in ('train', 'compare_norms')
    for option in ('load_from', 'model.backbone.init_cfg.checkpoint')
]


class Attack:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


class AttackByGetattr(Attack):
    """Reaches for a function through the getattr that is let in."""

    def __reduce__(self):
        from mmengine.logging import HistoryBuffer

        return getattr, (HistoryBuffer, '__init__')


def malicious(folder, attack=Attack, **how):
    file = folder / 'epoch_1.pth'
    torch.save(
        dict(state_dict={}, meta=dict(a=attack(folder / 'attacked'))), file, **how
    )
    return file


def assert_refused(message, file):
    assert str(file) in message and 'was refused' in message
    assert not (file.parent / 'attacked').exists()


@pytest.mark.parametrize(
    'how',
    [dict(), dict(attack=AttackByGetattr), dict(_use_new_zipfile_serialization=False)],
)
def test_is_refused(how, tmp_path, monkeypatch):
    # Which users of MMEngine set, to read their own checkpoints.
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    file = malicious(tmp_path, **how)
    with safe_loading():
        with pytest.raises(InputError) as error:
            read_checkpoint(str(file))
        assert_refused(str(error.value), file)
        # What MMEngine's Runner, and DetInferencer, read by.
        with pytest.raises(pickle.UnpicklingError):
            CheckpointLoader.load_checkpoint(str(file), 'cpu')
    assert not (tmp_path / 'attacked').exists()
    if 'attack' not in how:  # It is one.
        CheckpointLoader.load_checkpoint(str(file), 'cpu')
        assert (tmp_path / 'attacked').exists()


def test_a_pickle_is_refused(tmp_path):
    file = tmp_path / 'epoch_1.pth'
    file.write_bytes(pickle.dumps(dict(state_dict={})))
    with pytest.raises(InputError, match='holds more than tensors and plain values'):
        read_checkpoint(str(file))


@pytest.mark.parametrize('command', COMMANDS)
def test_every_tool_refuses(command, refused, digits, tmp_path):
    file = malicious(tmp_path)
    tool, *arguments = (
        part.format(file=file, out=tmp_path / 'out', data=digits)
        for part in COMMANDS[command]
    )
    if tool in ('train', 'test'):
        arguments += ['--work-dir', tmp_path]
    message = refused(f'tools/{tool}.py', *arguments, data=digits)
    assert_refused(message, file)


@pytest.mark.parametrize('tool, option', NAMED)
def test_of_a_config_is_refused(tool, option, refused, digits, tmp_path):
    file = malicious(tmp_path)
    options = [f'{option}={file}']
    if 'init_cfg' in option:
        options += [
            'model.backbone.init_cfg.type=Pretrained',
            'model.backbone.init_cfg._delete_=True',
        ]
    message = refused(
        f'tools/{tool}.py',
        FASTER,
        '--work-dir',
        tmp_path / 'work',
        data=digits,
        options=options,
    )
    assert_refused(message, file)


def test_a_download_is_refused(url, refused, digits, tmp_path):
    malicious(tmp_path / 'served')
    file = f'{url}/epoch_1.pth'
    message = refused(
        'tools/test.py', FASTER, file, '--work-dir', tmp_path, data=digits
    )
    assert file in message and 'was refused' in message
    assert not (tmp_path / 'served' / 'attacked').exists()
