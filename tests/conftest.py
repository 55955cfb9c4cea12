import ctypes
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from mmengine.utils import digit_version

from mmpsbn.datasets import make_digits

ROOT = Path(__file__).resolve().parent.parent
COCO128 = ROOT.parent / 'shared' / 'coco128'
NEU_DET = ROOT.parent / 'shared' / 'neu_det'

# `--hypothesis-profile=long`: ten times as many cases, others in every run.
settings.register_profile(
    'short',
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    # Files of the fixtures are written again.
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    'long',
    settings.get_profile('short'),
    max_examples=1000,
    derandomize=False,
    print_blob=True,
)
settings.load_profile('short')


needs_onnx = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.5'),
    reason='the exporter is older',
)


def cases(number):
    """Settings of a test that takes so many in the short profile."""
    return settings(max_examples=number * settings.default.max_examples // 100)


@pytest.fixture
def count(request):
    """Counts what became of the cases of a test, for the summary."""
    counts = {}
    request.node.user_properties.append(('fates', counts))

    def count(fate):
        counts[fate] = counts.get(fate, 0) + 1

    return count


def pytest_terminal_summary(terminalreporter):
    lines = [
        (report.nodeid.split('::')[-1], value)
        for report in terminalreporter.getreports('passed')
        for name, value in report.user_properties
        if name == 'fates'
    ]
    if lines:
        terminalreporter.section('cases of bad files')
    for test, counts in lines:
        words = ', '.join(f'{count} {fate}' for fate, count in counts.items())
        terminalreporter.line(f'{test}: {words}')


@contextmanager
def full_disk(size=100):
    """Files of this process end at so many bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def as_ordinary_user():
    """Permissions of files hold for this process, as not for root.

    It drops the capabilities CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()  # Effective, permitted, inheritable; twice.
    assert libc.capget(header, data) == 0
    before, data[0] = data[0], data[0] & ~0b110
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0] = before
        assert libc.capset(header, data) == 0


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
    """A tiny version of the demo's task, 16 + 8 scenes."""
    out = tmp_path_factory.mktemp('data') / 'digits'
    make_digits(str(out), train=16, val=8)
    return out


@pytest.fixture(scope='session')
def coco128():
    if not COCO128.is_dir():
        pytest.skip('the COCO128 images are not beside this repository')
    return COCO128


@pytest.fixture(scope='session')
def neu_det():
    if not NEU_DET.is_dir():
        pytest.skip('the NEU-DET images are not next to this repository')
    return NEU_DET
