"""Set-up says in one line what a machine lacks, and shows its progress."""

import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest
import yaml
from helpers import ROOT

import mmpsbn


@pytest.fixture
def setup_env():
    spec = importlib.util.spec_from_file_location(
        'setup_env', ROOT / 'tools' / 'setup_env.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stopped(check):
    with pytest.raises(SystemExit) as end:
        check()
    assert '\n' not in end.value.code
    return end.value.code


@pytest.mark.parametrize('version', [(3, 9), (3, 13)])
def test_python_that_is_not_supported(setup_env, monkeypatch, version):
    monkeypatch.setattr(
        setup_env,
        'sys',
        SimpleNamespace(version_info=version, version='other', exit=setup_env.sys.exit),
    )
    assert 'use 3.10, 3.11 or 3.12' in stopped(setup_env.check_python)


def test_the_operators_of_mmcv_depend_on_variables(setup_env, monkeypatch):
    seen = {setup_env.fingerprint()}
    for name in ('FORCE_CUDA', 'TORCH_CUDA_ARCH_LIST'):
        monkeypatch.setenv(name, '9.0')
        seen.add(setup_env.fingerprint())
    assert len(seen) == 3


def test_a_stack_that_is_not_known(setup_env, monkeypatch):
    monkeypatch.setattr(setup_env, 'STACK', 'new')
    assert 'prebuilt, successors, torch2.4' in stopped(setup_env.check_stack)


@pytest.mark.parametrize(
    'stack, mmcv',
    [
        ('default', 'mmcv==2.1.0'),
        ('prebuilt', 'mmcv==2.1.0'),
        ('torch2.4', 'mmcv==2.1.0'),
        ('successors', 'onedl-mmcv==2.3.6'),
    ],
)
def test_a_stack_pins_what_is_installed(setup_env, monkeypatch, stack, mmcv):
    monkeypatch.setattr(setup_env, 'STACK', stack)
    pins = setup_env.pins()
    assert pins.pop('mmcv') == mmcv
    detection = 'mmdetection' if stack == 'successors' else 'mmdet'
    assert set(pins) >= {'torch', 'setuptools', 'mmengine', detection}


def test_a_stack_replaces_pins_of_every_stack(setup_env, monkeypatch):
    installed = []
    monkeypatch.setattr(setup_env, 'STACK', 'prebuilt')
    monkeypatch.setattr(setup_env, 'pip', lambda *args: installed.extend(args))
    setup_env.install_stack()
    numpy = [str(line) for line in installed if str(line).startswith('numpy')]
    assert numpy == ['numpy==1.26.4'] and 'six==1.17.0' in installed


def test_mmcv_is_optimized_as_python_is(setup_env, monkeypatch):
    monkeypatch.delenv('CFLAGS', raising=False)
    monkeypatch.setenv('CXXFLAGS', '-O1')
    flags = setup_env.compiler_flags()
    assert flags['CXXFLAGS'] == '-O1'
    own = setup_env.sysconfig.get_config_var('CFLAGS').split()
    assert flags['CFLAGS'].split() == [*own, '-g0']
    assert any(flag.startswith('-O') for flag in own)


def test_no_compiler(setup_env, monkeypatch):
    monkeypatch.setattr(setup_env.shutil, 'which', lambda name: None)
    assert 'No C++ compiler' in stopped(setup_env.check_compiler)


def test_no_python_headers(setup_env, monkeypatch, tmp_path):
    monkeypatch.setattr(setup_env.sysconfig, 'get_path', lambda name: str(tmp_path))
    monkeypatch.setattr(setup_env.shutil, 'which', lambda name: name)
    assert 'python3-dev' in stopped(setup_env.check_compiler)


def test_nothing_is_done_twice(setup_env, monkeypatch, tmp_path):
    stamp = tmp_path / 'stamp'
    stamp.write_text(setup_env.fingerprint())
    monkeypatch.setattr(setup_env, 'STAMP', stamp)
    monkeypatch.setattr(setup_env, 'make_venv', lambda: pytest.fail('again'))
    setup_env.main()
    stamp.write_text('of other requirements')
    with pytest.raises(pytest.fail.Exception, match='again'):
        setup_env.main()


def test_progress_counts_the_compiler_s_files(setup_env, capsys):
    lines = ['gcc', *(f'[{n}/20] c++ file{n}.cpp' for n in range(1, 21))]
    log = io.StringIO()
    setup_env.show_progress((f'{line}\n' for line in lines), log)
    assert log.getvalue().splitlines() == lines
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 11 and '20 of 20 files' in shown[-1]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """A wheel that was built from the source distribution of a clean checkout."""
    folder = tmp_path_factory.mktemp('wheel')
    shutil.copytree(
        ROOT,
        folder / 'checkout',
        symlinks=True,
        ignore=shutil.ignore_patterns(
            '.git', '.venv*', '*.egg-info', 'data', 'work_dirs', 'build'
        ),
    )
    sdist = 'from setuptools.build_meta import build_sdist; build_sdist("..")'
    subprocess.run(
        [sys.executable, '-c', sdist],
        cwd=folder / 'checkout',
        check=True,
        capture_output=True,
    )
    (archive,) = folder.glob('*.tar.gz')
    options = ['-q', '--no-deps', '--no-build-isolation', '-w', folder]
    subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', *options, archive],
        env=dict(os.environ, REPO_URL='https://example.org/mmpsbn/'),
        check=True,
    )
    (wheel,) = folder.glob('*.whl')
    return wheel


@pytest.mark.slow
def test_the_description_has_absolute_links(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (x for x in archive.namelist() if x.endswith('.dist-info/METADATA'))
        metadata = archive.read(name).decode()
    targets = re.findall(r'\]\(([^)\s]+)\)', metadata)
    assert targets and all(target.startswith('https://') for target in targets)
    figure = 'https://example.org/mmpsbn/raw/HEAD/benchmarks/rounds/cifar10-plain.png'
    page = 'https://example.org/mmpsbn/blob/HEAD/docs/retraining.md#switch-to-psbn'
    assert {figure, page} <= set(targets)
    assert all(
        (ROOT / x.split('/HEAD/')[1].split('#')[0]).exists()
        for x in targets
        if '/HEAD/' in x
    )


@pytest.mark.slow
def test_an_installed_wheel_is_complete(wheel, tmp_path):
    """It is imported where there is no checkout, from an empty folder."""
    options = ['-q', '--no-deps', '--target', tmp_path / 'installed']
    subprocess.run(
        [sys.executable, '-m', 'pip', 'install', *options, wheel], check=True
    )
    code = """
from importlib.resources import files
import mmpsbn, mmpsbn.compare, mmpsbn.convert, mmpsbn.export, mmpsbn.prune
package = files(mmpsbn)
print(package)
print(mmpsbn.__version__)
for name in ('py.typed', '.mim/model-index.yml', '.mim/tools/train.py'):
    assert (package / name).is_file(), name
"""
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(tmp_path / 'installed')),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    place, version = done.stdout.splitlines()[-2:]
    assert place == str(tmp_path / 'installed' / 'mmpsbn')
    assert version == mmpsbn.__version__
    # Tools and configs work from there, too.
    mim = tmp_path / 'installed' / 'mmpsbn' / '.mim'
    for folder in ('tools', 'configs'):
        installed = {p.relative_to(mim) for p in (mim / folder).rglob('*.py')}
        assert installed == {p.relative_to(ROOT) for p in (ROOT / folder).rglob('*.py')}


@pytest.mark.slow
def test_a_wheel_has_what_mim_looks_for(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    originals = [
        ROOT / 'model-index.yml',
        *ROOT.glob('tools/*.py'),
        *ROOT.glob('configs/**/*.py'),
        *ROOT.glob('configs/*/*.yml'),
    ]
    assert len(originals) > 40
    for path in originals:
        assert f'mmpsbn/.mim/{path.relative_to(ROOT)}' in names
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    for file in index['Import']:
        for model in yaml.safe_load((ROOT / file).read_text())['Models']:
            assert (ROOT / model['Config']).is_file()
