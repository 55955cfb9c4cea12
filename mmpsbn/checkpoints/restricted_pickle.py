"""A replacement of ``pickle`` for ``torch.load`` that runs no code from a file.

torch before 2.6 has ``weights_only``, too, but it can be circumvented
(CVE-2025-32434), and before 2.4 it refuses the checkpoints of MMEngine. The
rules are those of torch 2.6:

- A file names only what is in :data:`GLOBALS`, and calls only that.
- It changes only lists, dicts and instances of a few types. Otherwise, it
  could set attributes of classes and functions.
- It uses only the operations that ``torch.save`` needs.
"""

import codecs
import functools
import pickle
import sys
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import serialization
from torch._weights_only_unpickler import _get_allowed_globals

from .safe_globals import SAFE_GLOBALS, STATEFUL, refusal

GLOBALS = {
    **_get_allowed_globals(),
    **SAFE_GLOBALS,
    '_codecs.encode': codecs.encode,  # It restores the bytes of an array.
    'builtins.set': set,
    'collections.Counter': Counter,  # MultiStepLR has its milestones in one.
    'torch.device': torch.device,
}
# It calls what a file gives it. Only subclasses of Tensor need it.
del GLOBALS['torch._tensor._rebuild_from_type_v2']


def _is_global(value) -> bool:
    return any(value is allowed for allowed in GLOBALS.values())


_Unpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]
# Where the value is that an operation calls or changes, and what it may be.
CHECKED: dict[str, tuple[Callable, Callable]] = dict(
    REDUCE=(lambda self: self.stack[-2], _is_global),
    NEWOBJ=(lambda self: self.stack[-2], _is_global),
    BUILD=(
        lambda self: self.stack[-2],
        lambda value: (
            type(value) in (OrderedDict, torch.Tensor, torch.nn.Parameter, *STATEFUL)
        ),
    ),
    APPEND=(lambda self: self.stack[-2], lambda value: type(value) is list),
    APPENDS=(lambda self: self.metastack[-1][-1], lambda value: type(value) is list),
    SETITEM=(
        lambda self: self.stack[-3],
        lambda value: type(value) in (dict, OrderedDict),
    ),
    SETITEMS=(
        lambda self: self.metastack[-1][-1],
        lambda value: type(value) in (dict, OrderedDict),
    ),
    # torch reads, and may write, the source files of other things.
    BINPERSID=(
        lambda self: self.stack[-1],
        lambda value: type(value) is tuple and value[0] in ('storage', b'storage'),
    ),
)
UNCHECKED = (
    'PROTO STOP GLOBAL MARK TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST '
    'EMPTY_DICT NONE NEWFALSE NEWTRUE BININT BININT1 BININT2 LONG1 BINFLOAT '
    'BINUNICODE SHORT_BINSTRING BINGET LONG_BINGET BINPUT LONG_BINPUT'
)


def _refused(unpickler) -> None:
    raise pickle.UnpicklingError(
        'Weights only load failed: it needs an operation that torch.save does not use'
    )


def _checked(operation: Callable, place: Callable, is_allowed: Callable) -> Callable:
    def checked(unpickler) -> None:
        value = place(unpickler)
        if not is_allowed(value):
            raise refusal(getattr(value, '__name__', type(value).__name__))
        operation(unpickler)

    return checked


def _operations() -> dict[int, Callable]:
    """Return what each operation does, by the byte that stands for it."""
    found: dict[int, Callable] = dict.fromkeys(range(256), _refused)
    for name in UNCHECKED.split():
        code = getattr(pickle, name)[0]
        found[code] = _Unpickler.dispatch[code]
    for name, check in CHECKED.items():
        code = getattr(pickle, name)[0]
        found[code] = _checked(_Unpickler.dispatch[code], *check)
    return found


class Unpickler(_Unpickler):
    """Reads a pickle by the rules of this module."""

    dispatch = _operations()

    def find_class(self, module: str, name: str):
        module = module.replace('__builtin__', 'builtins')  # Python 2's name.
        if f'{module}.{name}' not in GLOBALS:
            raise refusal(f'{module}.{name}')
        return GLOBALS[f'{module}.{name}']


def load(file, **options):
    """Read a pickle, as ``pickle.load`` does.

    Args:
        file: A file that is open for reading.
        options: As those of ``pickle.Unpickler``.
    """
    return Unpickler(file, **options).load()


def restricted(torch_load: Callable) -> Callable:
    """Return a ``torch.load`` that reads files by the rules of this module.

    Args:
        torch_load (Callable): The function of torch.
    """

    @functools.wraps(torch_load)
    def load_restricted(
        file, map_location=None, pickle_module=None, *, weights_only=None, **options
    ):
        with serialization._open_file_like(file, 'rb') as opened:
            start = opened.tell()
            if serialization._is_zipfile(opened):
                with serialization._open_zipfile_reader(opened) as archive:
                    if serialization._is_torchscript_zip(archive):
                        raise RuntimeError('Cannot read TorchScript safely')
            elif tarfile.is_tarfile(opened):  # torch would extract it.
                raise RuntimeError('Cannot read tar archives safely')
            opened.seek(start)
        module = sys.modules[__name__]
        return torch_load(file, map_location, module, weights_only=False, **options)

    return load_restricted
