"""Versions that do not work together are named at import."""

import pytest

from mmpsbn import stack


def with_versions(monkeypatch, missing=(), **versions):
    def version(name):
        if name in versions:
            return versions[name]
        raise stack.PackageNotFoundError(name)

    monkeypatch.setattr(stack, 'version', version)
    monkeypatch.setattr(
        stack, 'find_spec', lambda name: None if name in missing else name)


GOOD = dict(torch='2.13.0+cpu', mmengine='0.10.7', mmcv='2.1.0', mmdet='3.3.0')


def test_the_installed_stack_is_good():
    stack.check_stack()


@pytest.mark.parametrize('versions', [
    GOOD,
    dict(GOOD, torch='2.4.0a0+git123'),
    # The successors are distributions of other names.
    dict(torch='2.13.0')
])
def test_accepts(versions, monkeypatch):
    with_versions(monkeypatch, **versions)
    stack.check_stack()


@pytest.mark.parametrize('name, version', [
    ('mmcv', '2.2.0'), ('mmcv', '1.7.2'), ('mmdet', '2.28.2'),
    ('mmengine', '0.6.0'), ('torch', '2.3.1'),
    ('torch', '2.14.1')
])
def test_refuses_versions_that_do_not_work(name, version, monkeypatch):
    with_versions(monkeypatch, **dict(GOOD, **{name: version}))
    with pytest.raises(ImportError) as error:
        stack.check_stack()
    message = str(error.value)
    assert f'{name} {version}' in message and 'mmcv 2.1.0' in message
    assert message.endswith('.') and '\n' not in message


def test_names_what_is_missing(monkeypatch):
    with_versions(monkeypatch, missing=['mmdet'], **GOOD)
    with pytest.raises(ImportError, match='needs mmdet, which is not'):
        stack.check_stack()


def test_names_a_setuptools_without_pkg_resources(monkeypatch):
    with_versions(
        monkeypatch, missing=['pkg_resources'], setuptools='82.0', **GOOD)
    with pytest.raises(ImportError, match='setuptools 82.0 no longer has'):
        stack.check_stack()


def test_names_an_mmcv_without_operators(monkeypatch):
    with_versions(monkeypatch, missing=['mmcv._ext'], **GOOD)
    with pytest.raises(ImportError, match='the installed MMCV has none'):
        stack.check_stack()
