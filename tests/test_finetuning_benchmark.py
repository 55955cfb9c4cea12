"""benchmarks/finetuning.py: pretrained, finetuned, and reported as it was."""

import importlib
import re
import sys

import pytest
from conftest import ROOT
from mmengine.config import Config
from test_tools import SHORT

from mmpsbn.compare.report import Row


@pytest.fixture
def finetuning(monkeypatch):
    """The script as a module, which no other test sees."""
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    yield importlib.import_module('finetuning')
    del sys.modules['finetuning']


def test_finetuned_from_what_was_pretrained(finetuning, digits, tmp_path,
                                            monkeypatch, capsys):
    monkeypatch.setenv('MMDET_DATASETS', 'elsewhere')
    monkeypatch.setitem(finetuning.COLLAPSE, 'retinanet', [
        finetuning.Trainings('finetuned', (1, 2), norms=('psBN', ))])
    out = tmp_path / 'out'
    monkeypatch.setattr(sys, 'argv', [
        'finetuning.py', '--quick', '--detectors', 'retinanet', '--data',
        str(digits), str(digits), '--parts', 'collapse', '--out', str(out),
        '--cfg-options', *SHORT
    ])
    finetuning.main()
    bn, psbn = sorted(out.glob('retinanet/*/*/*/result.json'))[::-1]
    assert psbn.parent.name == 'psBN_lr0.08_seed0'
    start = Config.fromfile(psbn.parent / 'config.py').load_from
    assert start == str(bn.parent / 'epoch_2.pth')
    report = (out / 'report.md').read_text()
    assert '## Where collapse begins: retinanet' in report
    assert '- psBN: not up to lr 0.08.' in report
    assert re.search(r'^\| psBN \| 0.08 \| 1 \| ', report, re.M)
    assert (out / 'collapse-retinanet.png').stat().st_size > 5000

    # Nothing is repeated.
    before = [file.stat().st_mtime_ns for file in (bn, psbn)]
    capsys.readouterr()
    finetuning.main()
    assert capsys.readouterr().out.count('About 0 s to go') == 2
    assert [file.stat().st_mtime_ns for file in (bn, psbn)] == before


def row(lr, before, dead, well=(None, )):
    return Row('BN', lr, [None], list(well), [], [], before, dead)


def test_where_collapse_begins(finetuning):
    rows = [row(.4, [.02], [.1]), row(.1, [.02], [.02]), row(.2, [0.], [.03]),
            row(.8, [], [], well=())]
    assert finetuning.begins(rows, 'BN') == (
        'BN: from lr 0.2 on, where 3.0% of the channels have died')
    assert finetuning.begins(rows[1:2], 'BN') == 'BN: not up to lr 0.1'
    assert finetuning.begins(rows[3:], 'BN') == 'BN: every run diverged'
