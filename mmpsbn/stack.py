"""The versions of torch and OpenMMLab's packages that work together."""

import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from mmpsbn.errors import InputError

# The bounds are those that MMDetection 3 sets, the torch that most of its users
# have, and the first torch that requires C++20, while MMCV's sources are C++17.
SUPPORTED = dict(
    torch='>=2.1,<2.14', mmengine='>=0.7.1,<1.0', mmcv='>=2.0,<2.2', mmdet='>=3.0,<4.0'
)
TESTED = 'torch 2.1.2 or 2.13.0, mmengine 0.10.7, mmcv 2.1.0, mmdet 3.3.0'


def is_installed(*names: str) -> bool:
    """Return whether all of some packages are installed."""
    return all(find_spec(name) is not None for name in names)


def check_detection() -> None:
    """Raise an ImportError if a package that MMDetection needs is missing."""
    for name in SUPPORTED:
        if not is_installed(name):
            raise ImportError(
                f'detectors need {name}, which is not installed; versions '
                f'that work together: {TESTED}. Without it, only the layers '
                'of mmpsbn can be used.'
            )


def check_stack() -> None:
    """Raise if the installed stack is known not to work.

    Distributions of other names that install the same packages (the
    ``onedl-`` successors) are not checked.

    Raises:
        ImportError: With the installed version, and what works.
    """
    # MMCV requires it, and the layers themselves do not.
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    found = {name: _version(name) for name in SUPPORTED}
    for name, supported in SUPPORTED.items():
        # Nightly and vendors' builds count as the version that they precede.
        base = found[name] and Version(found[name]).base_version
        if base and base not in SpecifierSet(supported):
            raise ImportError(
                f'mmpsbn does not work with {name} {found[name]}, only with '
                f'{name}{supported}; versions that work together: {TESTED}.'
            )
    if found['mmengine'] and find_spec('pkg_resources') is None:
        raise ImportError(
            f'mmengine {found["mmengine"]} imports pkg_resources, which '
            f'setuptools {_version("setuptools")} no longer has; install '
            f'setuptools 80.10.2 (below 81) with {TESTED}.'
        )
    # That version of setuptools warns of this at every import.
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated')
    # The second call imports MMCV, and with it MMEngine.
    if is_installed('mmdet') and not is_installed('mmcv._ext'):
        raise ImportError(
            'MMDetection needs the compiled operators of MMCV, and the '
            'installed MMCV has none; install one that was built with '
            f'MMCV_WITH_OPS=1; versions that work together: {TESTED}.'
        )
    if is_installed('mmdet'):
        try:
            import_module('torch')  # Its libraries have to be loaded first.
            import_module('mmcv._ext')
        except ImportError as error:
            raise ImportError(
                'the operators of the installed MMCV were compiled for another torch '
                f'than {found["torch"]} ({error}); install MMCV again for this torch, '
                'see docs/troubleshooting.md.'
            ) from error


def check_packages(purpose: str, requirements: str, *names: str) -> None:
    """Raise if packages that only one tool needs are missing.

    Args:
        purpose (str): What needs the packages.
        requirements (str): Their file in ``requirements/``.
        names (str): The packages to import.

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


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
