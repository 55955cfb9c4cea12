"""benchmarks/gpu, as far as it needs no GPU."""

import runpy
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, needs_scaler, run_without
from torch import nn

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import correctness, cost, networks
from mmpsbn.errors import InputError
from mmpsbn.layers import LastBNLinear, MimicConv, PSBatchNorm2d

RESNET18 = ('--network', 'resnet18', '--size', '32', '--batches', '2')


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['gpu', *map(str, arguments)])
    command.main()


@pytest.mark.parametrize(
    'way',
    [
        'float32',
        'bfloat16 autocast',
        pytest.param('float16 autocast', marks=needs_scaler),
        'channels_last',
    ],
)
def test_psbn_trains_as_defined(way, monkeypatch):
    errors = correctness.check(way, 'cpu')
    assert correctness.passes(errors)
    assert errors['psBN'] < (3e-2 if 'autocast' in way else 1e-4)
    # The reference with another alpha is another network.
    monkeypatch.setattr(correctness, 'ALPHA', 0.2)
    assert not correctness.passes(correctness.check(way, 'cpu'))


def test_pssyncbn_trains_as_defined_in_two_processes():
    errors = correctness.check('psSyncBN, two processes', 'cpu')
    assert correctness.passes(errors) and errors['psBN'] < 1e-4


def test_the_resnets_of_torchvision(torchvision):
    net = networks.build('psBN', 'resnet18')
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20 and all(isinstance(m, PSBatchNorm2d) for m in norms)
    net = networks.build('MimicNorm')
    convs = [m for m in net.modules() if isinstance(m, MimicConv)]
    assert len(convs) == 53 and isinstance(net.fc, LastBNLinear)
    assert not any(type(m) is nn.Conv2d for m in net.modules())
    ends = [
        block.conv3.start
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4)
        for block in stage
    ]
    assert ends == [pytest.approx(1.2**3 / b) for b in range(1, 17)]
    scaled = [conv for conv in convs if conv.scale is not None]
    assert [conv.start for conv in scaled if conv.branch is None] == [1.2] * 4


def test_both_forms_of_mimicnorm_compute_the_same(torchvision):
    one, other = (
        networks.build(norm, 'resnet18').double()
        for norm in ('MimicNorm', networks.PUBLISHED)
    )
    other.load_state_dict(one.state_dict())
    one.load_state_dict(other.state_dict())  # Centered in float64.
    x = torch.randn(2, 3, 32, 32).double()
    torch.testing.assert_close(one(x), other(x))


@pytest.mark.slow
def test_the_command_writes_a_page(torchvision, monkeypatch, tmp_path):
    monkeypatch.setattr(cost, 'MOST_ROUNDS', 1)
    monkeypatch.delitem(cost.PRECISIONS, 'bfloat16 autocast')
    # Without a GPU, this way fails.
    monkeypatch.setattr(correctness, 'CUDA_ONLY', ())
    for way in list(correctness.WAYS):
        if way not in ('float32', 'CUDA graph'):
            monkeypatch.delitem(correctness.WAYS, way)
    run(monkeypatch, '--device', 'cpu', '--minutes', 1, '--out', tmp_path, *RESNET18)
    page = (tmp_path / 'report.md').read_text()
    assert 'so it is no result for a GPU' in page and torch.__version__ in page
    rows = [line.split(' | ') for line in page.splitlines() if line.startswith('| ')]
    names = [row[0].removeprefix('| ') for row in rows]
    cells = dict(zip(names, rows))
    assert cells['float32'][3] == 'yes |'
    assert cells['CUDA graph'][1].startswith('failed: RuntimeError')
    assert float(cells['training step'][5]) > 0 and cells['inference'][3] == '1'
    assert cells['BN'][2] == cells['psBN'][2] == '1.000'
    for figure in ('time.png', 'memory.png'):
        assert (tmp_path / figure).stat().st_size > 5000
        (tmp_path / figure).unlink()
    (tmp_path / 'report.md').unlink()
    run(monkeypatch, '--report', tmp_path)
    assert (tmp_path / 'report.md').read_text() == page
    assert {path.name for path in tmp_path.glob('*.png')} == {'time.png', 'memory.png'}


def test_nothing_begins_when_the_time_is_over(torchvision, monkeypatch, tmp_path):
    run(monkeypatch, '--device', 'cpu', '--minutes', 1e-9, '--out', tmp_path, *RESNET18)
    page = (tmp_path / 'report.md').read_text()
    assert page.count(command.OVER) == len(correctness.WAYS) + 4 + 4
    assert {path.name for path in tmp_path.iterdir()} == {'gpu.csv', 'report.md'}


def test_a_folder_without_results(monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, '--report', tmp_path)
    assert 'gpu.csv has no results. Measure them with --out' in str(end.value.code)


@pytest.mark.parametrize(
    'arguments, words',
    [
        ((), 'torch sees no GPU'),
        (('--device', 'cpu', '--long'), 'needs --data-root'),
        (('--device', 'cpu', '--long', '--data-root', 'no'), 'no has no data_batch'),
        (('--device', 'cpu', '--batches', '0'), 'must be positive'),
    ],
)
def test_arguments_that_are_refused(monkeypatch, tmp_path, capsys, arguments, words):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit):
        run(monkeypatch, '--out', tmp_path, *arguments)
    assert words in capsys.readouterr().err


def test_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchvision.models', None)
    with pytest.raises(InputError, match='Install the version that belongs'):
        networks.build('BN')


def test_the_studies_have_these_arguments(monkeypatch, tmp_path):
    args = SimpleNamespace(out=tmp_path, data_root=str(tmp_path), device='cpu')
    for study in command.STUDIES:
        _, _, module, *arguments = command.study_command(study, args)
        monkeypatch.setattr(sys, 'argv', [module, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name='__main__')
        assert 'CIFAR-10 has not been found' in str(end.value.code)


@pytest.mark.slow
def test_a_study_follows(monkeypatch, tmp_path):
    monkeypatch.setattr(command, 'STUDIES', ['mimicnorm'])
    (tmp_path / 'data_batch_1.bin').touch()
    with pytest.raises(SystemExit, match='mimicnorm failed'):
        run(
            monkeypatch,
            *('--device', 'cpu', '--minutes', 1e-9, '--out', tmp_path),
            *('--parts', 'Correctness', '--long', '--data-root', tmp_path),
        )
    page = (tmp_path / 'report.md').read_text()
    assert '| mimicnorm | ended with status 1, and' in page


@pytest.mark.slow
def test_neither_it_nor_the_studies_need_mmengine():
    result = run_without(
        ('mmengine', 'mmcv', 'mmdet', 'sklearn', 'matplotlib'),
        """
from benchmarks.gpu import __main__, correctness
print(correctness.passes(correctness.check('float32', 'cpu')))
import benchmarks.rounds.__main__
import benchmarks.collapse.__main__
import benchmarks.mimicnorm.__main__
""",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith('True')


@pytest.mark.slow
def test_reports_of_the_studies_do_not_need_mmengine(tmp_path):
    for study in ('rounds', 'collapse', 'mimicnorm'):
        (tmp_path / study).mkdir()
        for file in (ROOT / 'benchmarks' / study).glob('digits*.csv'):
            (tmp_path / study / file.name).symlink_to(file)
    result = run_without(
        ('mmengine', 'mmcv', 'mmdet'),
        f"""
import runpy
for study in ('rounds', 'collapse', 'mimicnorm'):
    sys.argv = ['-', '--results', {str(tmp_path)!r} + '/' + study]
    runpy.run_module('benchmarks.' + study, run_name='__main__')
""",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('Report: ') == 3
