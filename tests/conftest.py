import importlib
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from mmengine.utils import digit_version, manager

from mmpsbn.compare import tether
from mmpsbn.datasets import make_digits
from mmpsbn.detectors import outputs

pytest.register_assert_rewrite('helpers')

import forked
import shortcuts
from helpers import COMPARE, ROOT, SHORT

shortcuts.take()

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


@pytest.fixture(autouse=True)
def released():
    """Release MMEngine's lock, which an error in ``get_instance`` leaves locked.

    Later tests with threads would wait for it forever.
    """
    yield
    while manager._lock._is_owned():
        manager._lock.release()


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Runners of this process train there; those of the tools take a GPU if any."""
    monkeypatch.setattr('mmengine.device.utils.DEVICE', 'cpu')


@pytest.fixture
def count(request):
    """Counts what became of the cases of a test, for the summary."""
    counts = {}
    request.node.user_properties.append(('fates', counts))

    def count(fate):
        counts[fate] = counts.get(fate, 0) + 1

    return count


def pytest_xdist_auto_num_workers(config):
    # Many tests wait for processes that they have started.
    return len(os.sched_getaffinity(0)) + 1


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
        pytest.skip('the COCO128 images are not next to this repository')
    return COCO128


@pytest.fixture(scope='session')
def neu_det():
    if not NEU_DET.is_dir():
        pytest.skip('the NEU-DET images are not next to this repository')
    return NEU_DET


@pytest.fixture
def refused(monkeypatch):
    """What a tool says when it ends with an error message and no traceback.

    The tool runs in this process, as ``python tools/...`` would run it; an
    exception that is no SystemExit would be a traceback.
    """

    def refused(tool, *arguments, data=None, options=(), short=True):
        if short:
            arguments += ('--cfg-options', *SHORT, *options)
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        if data is not None:
            monkeypatch.setenv('MMDET_DATASETS', str(data))
        with pytest.raises(SystemExit) as end:
            runpy.run_path(tool, run_name='__main__')
        message = end.value.code
        assert isinstance(message, str) and message.startswith('error: ')
        return message

    return refused


@pytest.fixture
def compare(monkeypatch, digits, tmp_path):
    """The tool in this process, in which it takes Ctrl-C; its exit status."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('MMDET_DATASETS', str(digits))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    # Those that run in the background of a shell ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def compare(*arguments):
        monkeypatch.setattr(sys, 'argv', [*COMPARE, *arguments])
        try:
            runpy.run_path(COMPARE[0], run_name='__main__')
        except SystemExit as end:
            return end.code
        return 0

    yield compare
    for name, handler in before.items():
        signal.signal(name, handler)


@pytest.fixture
def url(tmp_path, monkeypatch):
    """Return the address of a local server of a folder."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    (tmp_path / 'served').mkdir()
    server = ThreadingHTTPServer(
        ('127.0.0.1', 0),
        partial(SimpleHTTPRequestHandler, directory=tmp_path / 'served'),
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.fixture(scope='session')
def torchvision():
    """torchvision, from the folder into which tools/setup_env.py installs it."""
    if digit_version(torch.__version__) < digit_version('2.13'):
        pytest.skip('the pinned torchvision is that of torch 2.13')
    folder = str(Path(sys.prefix) / 'timm')
    sys.path.append(folder)
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pytest.skip('torchvision is not installed')
    except RuntimeError:
        # The operators for detection are compiled for CUDA. Classifiers call
        # none of them, so their declarations are enough.
        library = torch.library.Library('torchvision', 'DEF')
        for name in ('nms', 'qnms'):
            library.define(
                f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
            )
    yield importlib.import_module('torchvision')
    sys.path.remove(folder)


@pytest.fixture(scope='session')
def timm(torchvision):
    return pytest.importorskip('timm')


@pytest.fixture
def in_this_process(monkeypatch):
    """Let studies train without a pool; the list has their jobs."""
    done = []

    def in_processes(waves, processes):
        for function, jobs in waves:
            for job in jobs:
                done.append(job)
                yield job, function(job)

    for module in ('rounds.__main__', 'detector_rounds.__main__', 'shared.rows'):
        monkeypatch.setattr(f'benchmarks.{module}.in_processes', in_processes)
    return done


@pytest.fixture(scope='session', autouse=True)
def forked_verification():
    """Run the stock models of conversions in forks instead of new Pythons.

    Conversions that a tool makes in its own process start a new Python.
    """
    start, program = subprocess.run, [sys.executable, outputs.__file__]

    def run(*args, **options):
        whole = resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
        verifies = args and args[0][:2] == program
        if whole and verifies and not torch.cuda.is_available():
            return forked.run_script(args[0][1:])
        return start(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, 'run', run)
        yield


@pytest.fixture
def forked_runs(monkeypatch):
    """Train the runs of a comparison in forks instead of new Pythons."""
    if not torch.cuda.is_available():
        forked.start_server()
        monkeypatch.setattr(tether, '__file__', forked.__file__)
