"""The classes and functions that checkpoints of MMEngine may name."""

import pickle

import numpy as np
from mmengine.logging import HistoryBuffer

# pickle's names of dtypes.
PLAIN = ('f2', 'f4', 'f8', 'i4', 'i8', 'b1')


def history_method(cls: type, name: str):
    """Replace ``getattr`` in checkpoints of MMEngine.

    A pickled HistoryBuffer refers to its methods with ``getattr``. With the
    real one, a malicious file could call any function.
    """
    if cls is not HistoryBuffer or name.startswith('_'):
        raise refusal('getattr is allowed only for the public methods of HistoryBuffer')
    return getattr(cls, name)


def plain_dtype(kind: str, *_) -> np.dtype:
    """Replace ``numpy.dtype``, which also makes arrays of addresses.

    NumPy does not let a pickle change the dtypes that it returns.
    """
    if kind not in PLAIN:
        raise refusal(f'numpy.dtype({kind!r})')
    return np.dtype(kind)


def array_class(*_):
    """Replace ``numpy.ndarray``, which may only be named.

    A file that called it could make an array of addresses.
    """
    raise refusal('numpy.ndarray')


def empty_array(*_) -> np.ndarray:
    """Replace the function of NumPy that makes an array to be filled."""
    return np.empty(0)


def refusal(what: str) -> pickle.UnpicklingError:
    """Return an error that reads like torch's.

    Args:
        what (str): The class or function that was refused.
    """
    return pickle.UnpicklingError(f'Weights only load failed: GLOBAL {what}')


# Besides tensors and plain values, checkpoints of MMEngine's Runner contain
# the HistoryBuffers of its message hub, which hold NumPy arrays.
SAFE_GLOBALS = {
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
    'builtins.getattr': history_method,
    'numpy.dtype': plain_dtype,
    'numpy.ndarray': array_class,
}
# NumPy 1 and 2 name the module differently, and read each other's arrays.
for core in ('numpy.core.multiarray', 'numpy._core.multiarray'):
    SAFE_GLOBALS[f'{core}._reconstruct'] = empty_array
    SAFE_GLOBALS[f'{core}.scalar'] = np.float64(0).__reduce__()[0]
# The types whose state a file restores.
STATEFUL = [HistoryBuffer, np.ndarray, *{type(np.dtype(kind)) for kind in PLAIN}]


def torch_safe_globals() -> list:
    """Return the classes and functions in the form that torch 2.6 takes.

    torch restores the state only of types that are allowed. Their names here
    contain a line break, so a file cannot call them.
    """
    return [
        *((value, name) for name, value in SAFE_GLOBALS.items()),
        *((kind, f'{kind.__qualname__}\n') for kind in STATEFUL),
    ]
