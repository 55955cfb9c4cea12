"""Versions that do not work together are named at import."""

import pytest
from helpers import run_without

from mmpsbn import stack


def with_versions(monkeypatch, missing=(), **versions):
    def version(name):
        if name in versions:
            return versions[name]
        raise stack.PackageNotFoundError(name)

    monkeypatch.setattr(stack, 'version', version)
    monkeypatch.setattr(
        stack, 'find_spec', lambda name: None if name in missing else name
    )


GOOD = dict(torch='2.13.0+cpu', mmengine='0.10.7', mmcv='2.1.0', mmdet='3.3.0')


def test_the_installed_stack_is_good():
    stack.check_stack()


@pytest.mark.parametrize(
    'versions',
    [
        GOOD,
        dict(GOOD, torch='2.1.0a0+git123'),
        # The successors are distributions of other names.
        dict(torch='2.13.0'),
    ],
)
def test_accepts(versions, monkeypatch):
    with_versions(monkeypatch, **versions)
    stack.check_stack()


@pytest.mark.parametrize(
    'name, version',
    [
        ('mmcv', '2.2.0'),
        ('mmcv', '1.7.2'),
        ('mmdet', '2.28.2'),
        ('mmengine', '0.6.0'),
        ('torch', '2.0.1'),
        ('torch', '2.14.1'),
    ],
)
def test_refuses_versions_that_do_not_work(name, version, monkeypatch):
    with_versions(monkeypatch, **dict(GOOD, **{name: version}))
    with pytest.raises(ImportError) as error:
        stack.check_stack()
    message = str(error.value)
    assert f'{name} {version}' in message and 'mmcv 2.1.0' in message
    assert message.endswith('.') and '\n' not in message


def test_operators_of_another_torch(monkeypatch):
    def import_module(name):
        if name == 'mmcv._ext':
            raise ImportError('_ext.so: undefined symbol: _ZN3c10')

    monkeypatch.setattr(stack, 'import_module', import_module)
    with pytest.raises(ImportError, match='compiled for another torch than .*_ZN3c10'):
        stack.check_stack()


def test_names_what_is_missing(monkeypatch):
    with_versions(monkeypatch, missing=['mmdet'], **GOOD)
    stack.check_stack()
    with pytest.raises(ImportError, match='need mmdet, which is not'):
        stack.check_detection()


def test_an_mmcv_without_operators_and_mmdetection(monkeypatch):
    with_versions(monkeypatch, missing=['mmdet', 'mmcv._ext'], **GOOD)
    stack.check_stack()


@pytest.mark.slow
def test_the_layers_need_only_torch():
    # All that the package installs but torch and what torch needs.
    missing = (
        'mmengine',
        'mmcv',
        'mmdet',
        'pycocotools',
        'cv2',
        'scipy',
        'sklearn',
        'numpy',
        'matplotlib',
        'rich',
        'markdown_it',
        'yaml',
    )
    result = run_without(
        missing,
        """
import torch
from mmpsbn import PSBatchNorm2d
from mmpsbn.layers import LastBNLinear, MimicConv
from mmpsbn import convert_batchnorm
from mmpsbn.analysis import collapse_report

net = torch.nn.Sequential(
    MimicConv(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3),
    PSBatchNorm2d(8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
    torch.nn.Flatten(), LastBNLinear(8, 2))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
net(torch.randn(4, 3, 8, 8)).square().sum().backward()
optimizer.step()
assert abs(net[0].weight.mean((1, 2, 3))).max() < 1e-6
other = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.ReLU())
convert_batchnorm(other)
print(collapse_report(other, torch.randn(4, 3, 8, 8)))
try:
    import mmpsbn.cli
except SystemExit as error:
    print(error)
""",
    )
    assert result.returncode == 0, result.stderr
    assert 'dead by outputs' in result.stdout
    assert 'error: detectors need mmengine, which is not' in result.stdout


def test_norm_cfg_without_mmdetection():
    result = run_without(
        ('mmdet', 'pycocotools'),
        """
import mmpsbn
from mmcv.cnn import ConvModule, build_norm_layer

print(build_norm_layer(dict(type='psBN'), 8)[1])
print(ConvModule(3, 8, 3, conv_cfg=dict(type='MimicConv'),
                 norm_cfg=dict(type='MimicNorm')))
""",
    )
    assert result.returncode == 0, result.stderr
    assert 'PSBatchNorm2d(8' in result.stdout
    assert 'MimicConv(3, 8' in result.stdout


def test_names_a_setuptools_without_pkg_resources(monkeypatch):
    with_versions(monkeypatch, missing=['pkg_resources'], setuptools='82.0', **GOOD)
    with pytest.raises(ImportError, match='setuptools 82.0 no longer has'):
        stack.check_stack()


def test_names_an_mmcv_without_operators(monkeypatch):
    with_versions(monkeypatch, missing=['mmcv._ext'], **GOOD)
    with pytest.raises(ImportError, match='the installed MMCV has none'):
        stack.check_stack()
