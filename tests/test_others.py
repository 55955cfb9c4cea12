"""Other people's tests: torch's pass, and a difference is reported."""

import os
import runpy
import subprocess
import sys
from importlib.util import find_spec

import pytest
from helpers import ROOT

LAYERS = """
import pytest
from mmcv.cnn import ConvModule
from torch import nn


def test_same():
    layer = ConvModule(3, 4, 1, norm_cfg=dict(type='BN')).norm
    assert isinstance(layer, nn.BatchNorm2d) and layer.num_features == 3 + 1


def test_other():
    layer = ConvModule(3, 4, 1, norm_cfg=dict(type='BN')).train().norm
    assert layer.bias.sum() == 0


def test_both_fail():
    assert False
"""


def run_others(*args):
    return subprocess.run(
        [sys.executable, str(ROOT / 'tests/others/run.py'), *map(str, args)],
        capture_output=True,
        text=True,
        env=dict(os.environ, CUDA_VISIBLE_DEVICES=''),
    )


@pytest.mark.slow
def test_torchs_tests_of_modules_pass_but_where_psbn_refuses():
    done = run_others('--torch')
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith('| torch'))
    tests, built, bn, ps, explained, unexplained = map(
        int, row.strip('| ').split(' | ')[1:]
    )
    # An older torch has no inputs with errors for BN, which are skipped.
    assert tests - 9 <= bn == ps + explained and not unexplained
    assert 'failure with BN' not in done.stdout
    assert built == ps > 0


@pytest.mark.slow
def test_the_detectors_of_mmdetections_configs_are_built_with_psbn():
    done = run_others('--configs')
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if '| configs |' in line)
    tests, built, bn, ps, explained, unexplained = map(
        int, row.strip('| ').split(' | ')[1:]
    )
    assert tests > 100 and bn == ps + explained and not unexplained
    # Others have GN or layer norm, or need packages that are not installed.
    assert built > 90 and 'failure with BN' not in done.stdout


@pytest.mark.slow
def test_a_difference_is_reported(tmp_path):
    folder = tmp_path / 'tests' / 'test_cnn'
    folder.mkdir(parents=True)
    (folder / 'test_layers.py').write_text(LAYERS)
    (folder / 'test_broken.py').write_text('import no_such_package')
    done = run_others('--mmcv', tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert '| mmcv | 4 | 2 | 2 | 1 | 0 | 1 |' in done.stdout
    assert 'psBN only: tests.test_cnn.test_layers.test_other' in done.stdout
    assert 'failure with BN: tests.test_cnn.test_layers.test_both_fail' in done.stdout


def test_a_suite_without_its_packages_is_refused(tmp_path):
    (tmp_path / 'tests' / 'test_models').mkdir(parents=True)
    if find_spec('parameterized'):
        pytest.skip('its package is installed')
    done = run_others('--mmdet', tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith('pip install parameterized')


def test_a_suite_that_builds_no_psbn_is_reported():
    run = runpy.run_path(str(ROOT / 'tests/others/run.py'))
    found = dict(test_nothing=run['Outcome']('error', 'No module named x', 0))
    with pytest.raises(SystemExit, match='no test of mmcv has built psBN'):
        run['report']('mmcv', dict(BN=found, psBN=found))


def test_a_wrong_folder_is_refused(tmp_path):
    done = run_others('--mmdet', tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith('by --mmdet.')
    assert 'has no tests/test_models' in done.stderr
    assert 'Traceback' not in done.stderr
