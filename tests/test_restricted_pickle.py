"""No pickle runs code, whatever its operations; every torch reads the rest."""

import io
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmpsbn.checkpoints.reading import read_checkpoint, safe_loading
from mmpsbn.checkpoints.restricted_pickle import restricted
from mmpsbn.errors import InputError

BUFFER = b'cmmengine.logging.history_buffer\nHistoryBuffer\n'
REBUILD = b'ctorch._utils\n_rebuild_tensor_v2\n'
DTYPE = b'cnumpy\ndtype\n'


def plain(value):
    """The operations that pickle a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def called(function, *args):
    return function + plain(args) + b'R'


SYSTEM = called(b'cos\nsystem\n', 'touch attacked')
METHOD = b'c__builtin__\ngetattr\n(' + BUFFER + plain('update') + b'tR'
ATTACKS = {
    'a function': SYSTEM,
    'a name with dots': called(b'ctorch\nserialization.os.system\n', 'touch attacked'),
    'a method of a storage': called(b'ctorch\nFloatStorage.from_file\n', 'attacked'),
    'a class without a call': b'(' + b'cos\nsystem\n' + plain('touch attacked') + b'o',
    'names as text': b"(S'touch attacked'\nios\nsystem\n",
    'names on the stack': plain('os') + plain('system') + b'\x93(' + plain('') + b'tR',
    'a registered extension': b'\x82\x01',
    'what a call returned': METHOD + b'()tR',
    'an attribute of a class': BUFFER + plain((None, dict(mean=1))) + b'b',
    'an attribute of a function': REBUILD
    + plain((None, dict(__kwdefaults__={})))
    + b'b',
    'a function in an argument': b'ctorch._tensor\n_rebuild_from_type_v2\n('
    + b'cos\nsystem\n'
    + b'ctorch\nTensor\n'
    + plain(('touch attacked',))
    + b'}tR',
    'an array of addresses': called(b'cnumpy\nndarray\n', (1,), 'O8', b'A' * 8),
    'a dtype of addresses': called(DTYPE, 'O8', False, True),
    'the source of a module': b'('
    + plain('module')
    + BUFFER
    + plain(('a', 'b'))
    + b'tQ',
    'a method that appends': BUFFER + b')\x81' + plain(dict(append=1)) + b'bNa',
    'an instance of what a call returned': METHOD + b')\x81',
    'an item of a class': BUFFER + plain(1) + plain(2) + b's',
    'a private method': b'c__builtin__\ngetattr\n('
    + BUFFER
    + plain('__init__')
    + b'tR',
}


def archive(file, operations):
    with zipfile.ZipFile(file, 'w') as content:
        content.writestr('archive/data.pkl', b'\x80\x02' + operations + b'.')
        content.writestr('archive/version', '3\n')
    return file


@pytest.fixture(params=['of this torch', 'of torch before 2.6'])
def load(request):
    """What reads files in the tools, and what reads them with older torch."""
    if request.param == 'of this torch':
        with safe_loading():
            yield lambda *args: torch.load(*args)
    else:
        yield restricted(torch.load)


@pytest.mark.parametrize('attack', ATTACKS)
def test_no_operation_runs_code(attack, load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mean, defaults = HistoryBuffer.mean, torch._utils._rebuild_tensor_v2.__kwdefaults__
    operations = ATTACKS[attack]
    file = archive(tmp_path / 'epoch_1.pth', operations)
    with pytest.raises(pickle.UnpicklingError, match='Weights only load failed'):
        load(str(file))
    with pytest.raises(InputError):
        read_checkpoint(str(file))
    # In the format before torch 1.6, and from memory.
    with pytest.raises(pickle.UnpicklingError, match='Weights only load failed'):
        load(io.BytesIO(b'\x80\x02' + operations + b'.'))
    assert os.listdir(tmp_path) == ['epoch_1.pth']
    assert HistoryBuffer.mean is mean
    assert torch._utils._rebuild_tensor_v2.__kwdefaults__ is defaults


def test_a_dtype_keeps_its_flags(load, tmp_path):
    dtype = called(DTYPE, 'f8', False, True)
    forged = plain((3, '<', None, None, None, -1, -1, 63))
    file = archive(tmp_path / 'epoch_1.pth', dtype + forged + b'b')
    dtype = load(str(file))
    assert dtype.flags == 0 and np.dtype('f8').flags == 0


def test_a_tar_archive_is_not_unpacked(load, tmp_path):
    (tmp_path / 'attacked').symlink_to('/')
    with tarfile.open(tmp_path / 'epoch_1.pth', 'w') as tar:
        tar.add(tmp_path / 'attacked', 'storages')
    with pytest.raises(RuntimeError, match='tar'):
        load(str(tmp_path / 'epoch_1.pth'))
    with pytest.raises(InputError, match='not a checkpoint of torch'):
        read_checkpoint(str(tmp_path / 'epoch_1.pth'))


def test_a_program_in_torchscript_is_not_loaded(load, tmp_path):
    file = tmp_path / 'epoch_1.pth'
    torch.jit.script(torch.nn.ReLU()).save(str(file))
    with pytest.raises(RuntimeError, match='TorchScript'):
        load(str(file))
    with pytest.raises(InputError, match='TorchScript program, not a checkpoint'):
        read_checkpoint(str(file))


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('core', ['core', '_core'])
def test_what_mmengine_saves_is_read(load, core, zipped, tmp_path):
    model = torch.nn.BatchNorm2d(3).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 4, 4).bfloat16()).sum().backward()
    optimizer.step()
    saved = dict(
        state_dict=model.state_dict(),
        optimizer=optimizer.state_dict(),
        meta=dict(epoch=1, cfg='a = 1', dataset_meta=dict(classes=('a',), sizes={1})),
        history=HistoryBuffer([1.0, 2.0], [1, 2]),
        values=[np.float64(0.5), np.arange(3), np.array([True]), torch.Size([2])],
        parameter=torch.nn.Parameter(torch.ones(2)),
        device=torch.device('cpu'),
    )
    file = io.BytesIO()
    torch.save(saved, file, _use_new_zipfile_serialization=zipped)
    content = file.getvalue()
    # NumPy 1 and 2 have different names for it; pickle's lines have any length.
    own = type(np.float64(0)).__reduce__(np.float64(0))[0].__module__.encode()
    other = f'numpy.{core}.multiarray'.encode()
    if own != other:
        if zipped:
            source = zipfile.ZipFile(io.BytesIO(content))
            file = io.BytesIO()
            with zipfile.ZipFile(file, 'w') as target:
                for name in source.namelist():
                    target.writestr(name, source.read(name).replace(own, other))
            content = file.getvalue()
        else:
            content = content.replace(own, other)
    (tmp_path / 'epoch_1.pth').write_bytes(content)
    found = load(str(tmp_path / 'epoch_1.pth'), 'cpu')
    assert found['history'].mean() == saved['history'].mean()
    assert found['history'].statistics('max') == 2
    assert found['meta'] == saved['meta'] and found['device'] == saved['device']
    assert str(found['values']) == str(saved['values'])
    assert str(found['optimizer']) == str(saved['optimizer'])
    model.load_state_dict(found['state_dict'])
    assert str(found['state_dict']) == str(saved['state_dict'])
    assert type(found['parameter']) is torch.nn.Parameter
    np.testing.assert_array_equal(found['history'].data[1], [1, 2])
