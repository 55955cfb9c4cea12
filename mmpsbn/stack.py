"""Which versions of the stack are known not to work."""

import re
import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from mmpsbn.errors import InputError

# From the first version that works up to, without, the first that does not:
# the bounds that MMDetection 3 itself sets, the first torch that can read
# MMEngine's checkpoints without running code, and the first that asks for
# C++20, where MMCV's sources ask for C++17.
RANGES = dict(
    torch=((2, 4), (2, 14)),
    mmengine=((0, 7, 1), (1, 0)),
    mmcv=((2, 0), (2, 2)),
    mmdet=((3, 0), (4, 0)),
)
TESTED = 'torch 2.13.0, mmengine 0.10.7, mmcv 2.1.0, mmdet 3.3.0'


def is_installed(*names: str) -> bool:
    """Whether all of some packages are installed."""
    return all(find_spec(name) is not None for name in names)


def check_detection() -> None:
    """Raise if a package that MMDetection needs is not installed.

    Raises:
        ImportError: One sentence with the package and what works.
    """
    for name in RANGES:
        if not is_installed(name):
            raise ImportError(
                f'detectors need {name}, which is not installed; versions '
                f'that work together: {TESTED}. Without it, only the layers '
                'of mmpsbn can be used.'
            )


def check_stack() -> None:
    """Raise if the installed stack is known not to work.

    Distributions of another name that install the same packages (the
    ``onedl-`` successors) are not judged.

    Raises:
        ImportError: One sentence with what was found and what works.
    """
    found = {name: _version(name) for name in RANGES}
    for name, (first, end) in RANGES.items():
        if found[name] and not first <= _numbers(found[name]) < end:
            raise ImportError(
                f'mmpsbn does not work with {name} {found[name]}, only from '
                f'{_text(first)} up to but not including {_text(end)}; '
                f'versions that work together: {TESTED}.'
            )
    if found['mmengine'] and find_spec('pkg_resources') is None:
        raise ImportError(
            f'mmengine {found["mmengine"]} imports pkg_resources, which '
            f'setuptools {_version("setuptools")} no longer has; install '
            f'setuptools 80.10.2 (below 81) beside {TESTED}.'
        )
    # The version asked for above warns of this at every import.
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated')
    # The second call imports MMCV, and with it MMEngine.
    if is_installed('mmdet') and not is_installed('mmcv._ext'):
        raise ImportError(
            'MMDetection needs the compiled operators of MMCV, and the '
            'installed MMCV has none; install one that was built with '
            f'MMCV_WITH_OPS=1; versions that work together: {TESTED}.'
        )


def check_packages(purpose: str, requirements: str, *names: str) -> None:
    """Raise if packages are missing that one tool alone needs.

    Args:
        purpose (str): What needs them.
        requirements (str): Their file in ``requirements/``.
        names (str): To import.

    Raises:
        InputError: With the command that installs them.
    """
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            raise InputError(
                f'{purpose} needs {error.name}, which is not installed: pip '
                f'install -r requirements/{requirements}.txt'
            ) from error


def _version(name: str):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple:
    numbers = re.match(r'[\d.]*\d', text).group().split('.')
    return tuple(int(number) for number in numbers)


def _text(numbers: tuple) -> str:
    return '.'.join(map(str, numbers))
