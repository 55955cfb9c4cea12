"""Reading checkpoints without running code that may hide in them."""

import codecs
import os
import pickle
import re
import zipfile
from contextlib import contextmanager
from typing import Dict, Iterator, List, Optional, Tuple
from urllib.error import URLError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import is_model_wrapper
from mmengine.runner import (CheckpointLoader, checkpoint as loading,
                             find_latest_checkpoint)
from torch import Tensor, nn

from mmpsbn.errors import InputError

# Of MMEngine's CheckpointHook.
CHECKPOINT = re.compile(r'(epoch|iter)_\d+\.pth')

multiarray = (np.core if np.__version__ < '2' else np._core).multiarray


def history_method(cls: type, name: str):
    """Stand-in for ``getattr`` in checkpoints, for what MMEngine asks of it.

    A pickled HistoryBuffer names its methods by ``getattr``. The real one
    would give a malicious file a way to any function.
    """
    if cls is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(
            'Weights only load failed: GLOBAL getattr is allowed for the '
            'public methods of HistoryBuffer alone')
    return getattr(cls, name)


# The name that torch lets it in by.
history_method.__module__ = 'builtins'
history_method.__name__ = history_method.__qualname__ = 'getattr'

# What a checkpoint of MMEngine's Runner holds beside tensors and plain
# values: the HistoryBuffers of its message hub, with their NumPy arrays.
# `torch.load(weights_only=True)`, torch's default since 2.6, may build these
# and nothing else. torch 2.4 is the first that can be told so.
SAFE_GLOBALS = [
    HistoryBuffer,
    np.ndarray,
    np.dtype,
    multiarray._reconstruct,
    multiarray.scalar,
    codecs.encode,  # Bytes of an array; torch 2.4 does not know it.
    *{type(np.dtype(kind)) for kind in ('f2', 'f4', 'f8', 'i4', 'i8', '?')},
    history_method,
]


def allow_mmengine_checkpoints() -> None:
    """Let torch read MMEngine's checkpoints, ``weights_only`` on.

    Without it ``tools/test.py``, ``--resume`` and ``DetInferencer`` refuse
    their own checkpoints (open-mmlab/mmengine, issue 1655).
    """
    torch.serialization.add_safe_globals(SAFE_GLOBALS)


# The successors' MMEngine lets globals in for each of its loads, and takes
# them back after it. Its list has the real getattr, which torch would take in
# the place of ours or not, by the order of a set.
OF_SUCCESSORS = getattr(loading, 'get_torch_safe_globals', None)


def safe_globals_of_successors() -> list:
    """What the successors' MMEngine lets in, with our getattr for the real."""
    return SAFE_GLOBALS + [
        allowed for allowed in OF_SUCCESSORS() if allowed is not getattr
    ]


@contextmanager
def without_code() -> Iterator[None]:
    """Let every ``torch.load`` refuse what would run code.

    torch's default does so for local files since 2.6, unless an environment
    variable turns it off; its loader of downloads, which MMEngine calls, does
    not.
    """
    changed = dict(
        TORCH_FORCE_WEIGHTS_ONLY_LOAD='1',
        TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='0')
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    allow_mmengine_checkpoints()
    # One may lie within another: read_checkpoint within a tool.
    outer = getattr(loading, 'get_torch_safe_globals', None)
    if OF_SUCCESSORS:
        loading.get_torch_safe_globals = safe_globals_of_successors
    try:
        yield
    finally:
        if OF_SUCCESSORS:
            loading.get_torch_safe_globals = outer
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class TornCheckpoint(InputError):
    """A file that is no whole checkpoint."""


def find_resumable(work_dir: str) -> Optional[str]:
    """The newest checkpoint of a work dir that is whole.

    MMEngine's ``last_checkpoint`` is looked at, and what is there beside it:
    a run may have ended before that was written, or in writing it.

    Returns:
        str: A path; None if the work dir has no checkpoint.

    Raises:
        InputError: If it has some, and none is whole, or if the newest whole
            one would run code.
    """
    paths = [
        entry.path for entry in os.scandir(work_dir)
        if CHECKPOINT.fullmatch(entry.name)
    ] if os.path.isdir(work_dir) else []
    if os.path.isfile(os.path.join(work_dir, 'last_checkpoint')):
        last = find_latest_checkpoint(work_dir)
        if os.path.isdir(last):  # DeepSpeed's; it has its own ways.
            return last
        if os.path.isfile(last) and os.path.abspath(last) not in map(
                os.path.abspath, paths):
            paths.append(last)
    torn = None
    for path in sorted(paths, key=os.path.getmtime, reverse=True):
        try:
            read_checkpoint(path)
        except TornCheckpoint as error:
            torn = torn or error
        else:
            return path
    if torn:
        raise torn
    return None


def checkpoint_of(path: str) -> str:
    """Return the last whole checkpoint of a work dir; a file stays itself.

    Raises:
        InputError: If there is neither, or if no checkpoint can be read.
    """
    if '://' in path:
        return path
    if not os.path.exists(path):
        raise InputError(f'{path} does not exist. Name a checkpoint file, or '
                         'the work dir of a training.')
    if not os.path.isdir(path):
        return path
    found = find_resumable(path)
    if found is None:
        raise InputError(
            f'the work dir {path} has no checkpoint, because it contains no '
            'file epoch_N.pth or iter_N.pth. Name the work dir of a training '
            'that has written one, or a checkpoint file.')
    return found


def read_checkpoint(path: str) -> dict:
    """Read a checkpoint by MMEngine's loader.

    Args:
        path (str): A file, or any name that MMEngine loads from.

    Returns:
        dict: The checkpoint, on the CPU.

    Raises:
        InputError: If there is no such file, if it is torn, if it would run
            code, or if it is no checkpoint.
    """
    try:
        _check_sums(path)
        with without_code():
            checkpoint = CheckpointLoader.load_checkpoint(
                path, map_location='cpu', logger='silent')
    except FileNotFoundError as error:
        raise InputError(
            f'the checkpoint {path} does not exist, or is no file.') from error
    except PermissionError as error:  # Of the file, or of a download's.
        remedy = 'Set TORCH_HOME to a folder that you can write' \
            if '://' in path else 'Change its permissions'
        raise InputError(f'the checkpoint {path} cannot be read ({error}). '
                         f'{remedy}.') from error
    except pickle.UnpicklingError as error:
        if 'Weights only load failed' not in str(error):
            raise TornCheckpoint(_torn(path)) from error
        raise InputError(
            f'the checkpoint {path} was refused: it holds '
            f'{_refused(error)}, and loading that could run code; load only '
            'files of MMEngine, or of torch with tensors alone.') from error
    except (InputError, URLError):
        raise
    except Exception as error:  # A damaged pickle may ask for anything.
        raise TornCheckpoint(_torn(path)) from error
    if not isinstance(checkpoint, dict) or not isinstance(
            checkpoint.get('state_dict', {}), dict):
        raise InputError(f'{path} holds a {type(checkpoint).__name__}, not a '
                         'checkpoint with a state dict.')
    return checkpoint


def _check_sums(path: str) -> None:
    """Compare a file's contents with the sums in it, which torch does not."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged:
            raise zipfile.BadZipFile(damaged)


def _torn(path: str) -> str:
    return (f'the checkpoint {path} cannot be read: it is truncated or '
            'damaged, or no checkpoint of torch; take an earlier one, or copy '
            'it again.')


def _refused(error: Exception) -> str:
    for line in str(error).splitlines():
        if 'GLOBAL ' in line:
            return line.split('GLOBAL ')[1].split()[0]
    return 'more than tensors and plain values'


def state_of(checkpoint: dict) -> dict:
    """The state dict of a checkpoint, without the prefix of a wrapper."""
    return {
        key.removeprefix('module.') if isinstance(key, str) else key: value
        for key, value in checkpoint.get('state_dict', checkpoint).items()
    }


def backbone_state(checkpoint: dict) -> Optional[dict]:
    """Return the state dict of a backbone alone, without its classifier.

    Returns:
        dict: A state dict; None if the checkpoint is of a detector.
    """
    state = state_of(checkpoint)
    if any('backbone.' in str(key) for key in state):
        return None
    return {
        key: value for key, value in state.items()
        if not str(key).startswith('fc.')
    }


def is_of_mimicnorm(state: dict) -> bool:
    """Whether a state dict has the scalars of MimicNorm."""
    return any(
        isinstance(key, str) and key.endswith('.scale')
        and f'{key[:-len("scale")]}weight' in state for key in state)


def mimicnorm_parts_of(state: dict) -> Tuple[bool, bool]:
    """Say which parts of MimicNorm the weights in a state dict have.

    Returns:
        tuple: Whether they have the body, and whether they have a last BN,
        which is a layer with running statistics next to a weight matrix.
    """
    last_bns = (
        isinstance(key, str) and key.endswith('.running_var')
        and _has_numbers(state.get(f'{layer_of(key)}.weight'))
        and state[f'{layer_of(key)}.weight'].dim() > 1 for key in state)
    return is_of_mimicnorm(state), any(last_bns)


def layer_of(key: str) -> str:
    """The layer that a key of a state dict belongs to."""
    return key.rpartition('.')[0]


def with_own_classes(model: nn.Module, state: dict) -> Tuple[dict, List[str]]:
    """A detector's state dict, for the same detector of other classes.

    Layers that differ in the number of their outputs alone predict classes,
    or boxes by class: they stay as the model has them. An inner layer of
    another width differs in its inputs too, or another does.

    Args:
        model (nn.Module): That is to start from it.
        state (dict): Of the detector.

    Returns:
        tuple: The state dict, and the names of those layers.
    """
    layers: Dict[str, dict] = {}
    for key, value in model.state_dict().items():
        layers.setdefault(layer_of(key), {})[key] = value
    reinitialized = {
        layer: own for layer, own in layers.items()
        if any(value.dim() > 1 for value in own.values()) and all(
            _of_other_outputs(value, state.get(key))
            for key, value in own.items())
    }
    kept = {key: value for own in reinitialized.values()
            for key, value in own.items()}
    return {**state, **kept}, list(reinitialized)


def _of_other_outputs(own: Tensor, value) -> bool:
    return _has_numbers(value) and own.dim() == value.dim() > 0 and len(
        own) != len(value) and own.shape[1:] == value.shape[1:]


def _has_numbers(value) -> bool:
    return isinstance(value, Tensor) and not (
        value.is_complex() or value.is_meta or value.layout != torch.strided)


def check_fits(model: nn.Module, checkpoint: dict, path: str) -> None:
    """Raise if a checkpoint is not of this model's architecture.

    MMEngine loads what fits and logs the rest, so that a wrong checkpoint
    evaluates to a wrong number.

    Raises:
        InputError: With the first missing, unexpected and wrongly shaped
            keys, and those of no tensor of real numbers.
    """
    state = state_of(checkpoint)
    if is_model_wrapper(model):
        model = model.module
    own = model.state_dict()
    missing = [
        key for key in own
        if key not in state and not key.endswith('num_batches_tracked')
    ]
    unexpected = [key for key in state if key not in own]
    misshapen = [
        f'{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}'
        for key in own if _has_numbers(state.get(key)) and
        state[key].shape != own[key].shape
    ]
    empty = [key for key in own
             if key in state and not _has_numbers(state[key])]
    problems = [
        f'{len(keys)} {what} ({", ".join(map(str, keys[:3]))}'
        f'{", ..." if len(keys) > 3 else ""})'
        for what, keys in (('missing', missing), ('unexpected', unexpected),
                           ('of another shape', misshapen),
                           ('of no dense tensor of real numbers', empty))
        if keys
    ]
    if problems:
        raise InputError(
            f'the checkpoint {path} does not fit the model of the config: of '
            f'{len(own)} keys {"; ".join(problems)}. '
            f'{_likely_reason(missing, unexpected)}')


def _likely_reason(missing: List[str], unexpected: list) -> str:
    unexpected = list(map(str, unexpected))
    if any(key.endswith('.running_var') for key in unexpected) and any(
            key.endswith('.scale') for key in missing):
        return ('The checkpoint has norm layers and the model has MimicNorm: '
                'make it one of MimicNorm by tools/convert.py --to mimicnorm.')
    if any(key.endswith('.running_var') for key in missing) and any(
            key.endswith('.scale') for key in unexpected):
        return ('The checkpoint is of MimicNorm and the model has norm '
                'layers: take the config that it was trained with.')
    return ('Was it trained with another config, or another number of '
            'classes?')
