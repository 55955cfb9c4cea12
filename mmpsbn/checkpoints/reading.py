"""Functions that read checkpoints without running code from them."""

import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Optional
from urllib.error import URLError

import torch
from mmengine.runner import CheckpointLoader, find_latest_checkpoint
from mmengine.runner import checkpoint as loading
from mmengine.utils import digit_version

from mmpsbn.errors import InputError

from .restricted_pickle import restricted
from .safe_globals import torch_safe_globals

HAS_SAFE_LOADING = digit_version(torch.__version__) >= digit_version('2.6')
# The names of the files that MMEngine's CheckpointHook writes.
NAMES = re.compile(r'(epoch|iter)_(\d+)\.pth')


def allow_mmengine_checkpoints() -> None:
    """Make torch read MMEngine's checkpoints with ``weights_only=True``.

    Otherwise, ``tools/test.py``, ``--resume`` and ``DetInferencer`` refuse
    their own checkpoints (open-mmlab/mmengine, issue 1655). torch before 2.6
    reads all files by default.
    """
    if HAS_SAFE_LOADING:
        torch.serialization.add_safe_globals(torch_safe_globals())


@contextmanager
def safe_loading() -> Iterator[None]:
    """Make every ``torch.load`` in the context refuse files that run code.

    torch refuses them by default since 2.6, but an environment variable turns
    this off, and MMEngine loads downloads with ``weights_only=False``. Only
    environment variables change these calls. Older torch gets another
    unpickler. Needed by test_malicious_files.py.
    """
    changed = dict(
        # Older torch takes no unpickler with it.
        TORCH_FORCE_WEIGHTS_ONLY_LOAD='1' if HAS_SAFE_LOADING else '0',
        TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD='0',
    )
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    allow_mmengine_checkpoints()
    load = torch.load
    if not HAS_SAFE_LOADING:
        torch.load = restricted(load)
    # MMEngine's successor (onedl-mmengine) allows globals of its own in each
    # load, among them the real getattr. torch would choose one of the two
    # functions by the order of a set.
    theirs = getattr(loading, 'get_torch_safe_globals', None)
    if theirs:
        loading.get_torch_safe_globals = torch_safe_globals
    try:
        yield
    finally:
        torch.load = load
        if theirs:
            loading.get_torch_safe_globals = theirs
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class DamagedCheckpoint(InputError):
    """A file is not a complete checkpoint."""


class Checkpoint(NamedTuple):
    """A checkpoint that has been read."""

    path: str
    """The file, or the name that MMEngine loaded it by."""
    content: dict
    """The whole checkpoint, on the CPU."""

    @property
    def state_dict(self) -> dict:
        """The weights, without the prefix of a wrapper such as DDP."""
        return {
            key.removeprefix('module.') if isinstance(key, str) else key: value
            for key, value in self.content.get('state_dict', self.content).items()
        }

    @property
    def meta(self) -> dict:
        """The notes of MMEngine's Runner about the training."""
        return self.content.get('meta') or {}

    @property
    def backbone(self) -> Optional['Checkpoint']:
        """The checkpoint of a backbone, without its classifier.

        It is None if the checkpoint is that of a detector.
        """
        state = self.state_dict
        if any('backbone.' in str(key) for key in state):
            return None
        return self.with_state_dict(
            {
                key: value
                for key, value in state.items()
                if not str(key).startswith('fc.')
            }
        )

    def with_state_dict(self, state_dict: dict) -> 'Checkpoint':
        """Return the same checkpoint with other weights.

        Args:
            state_dict (dict): The weights.
        """
        return self._replace(
            content={**self.content, 'state_dict': state_dict}
            if 'state_dict' in self.content
            else state_dict
        )


def find_latest(work_dir: str) -> Checkpoint | None:
    """Find and read the newest complete checkpoint of a work dir.

    If a training was killed, MMEngine's file ``last_checkpoint`` may be
    damaged or name an older checkpoint. If a work dir was copied, the times of
    its files are not those of the training.

    Args:
        work_dir (str): The work dir of a training.

    Returns:
        Checkpoint: The checkpoint, or None if the work dir has none.

    Raises:
        InputError: If no checkpoint is complete, or if the newest complete
            one would run code.
    """
    paths = (
        [entry.path for entry in os.scandir(work_dir) if NAMES.fullmatch(entry.name)]
        if os.path.isdir(work_dir)
        else []
    )
    last = ''
    if os.path.isfile(os.path.join(work_dir, 'last_checkpoint')):
        last = find_latest_checkpoint(work_dir)
        if os.path.isdir(last):  # DeepSpeed writes folders, and reads them.
            return Checkpoint(last, {})
        if os.path.isfile(last) and os.path.abspath(last) not in map(
            os.path.abspath, paths
        ):
            paths.append(last)
    damaged = None
    for path in _newest_first(paths, last):
        try:
            return read_checkpoint(path)
        except DamagedCheckpoint as error:
            damaged = damaged or error
    if damaged:
        raise damaged
    return None


def _newest_first(paths: list[str], last: str) -> list[str]:
    """Sort checkpoints by time, after those that ``last_checkpoint`` decides.

    These are the one that it names, and before it those of a later time and a
    larger number.
    """
    by_time = sorted(paths, key=os.path.getmtime, reverse=True)
    names = [os.path.basename(path) for path in by_time]
    named = NAMES.fullmatch(os.path.basename(last))
    if not named or named[0] not in names:
        return by_time
    index = names.index(named[0])
    ahead = [
        path
        for path, name in zip(by_time[:index], names)
        if (other := NAMES.fullmatch(name))
        and other[1] == named[1]
        and int(other[2]) > int(named[2])
    ]
    first = [*ahead, by_time[index]]
    return first + [path for path in by_time if path not in first]


def find_checkpoint(path: str) -> Checkpoint:
    """Read a checkpoint file, or the last checkpoint of a work dir.

    Args:
        path (str): A file, a work dir, or a URL that MMEngine loads from.

    Raises:
        InputError: If the path does not exist, or if no checkpoint can be
            read.
    """
    if '://' in path or os.path.isfile(path):
        return read_checkpoint(path)
    if not os.path.exists(path):
        raise InputError(
            f'{path} does not exist. Name a checkpoint file, or '
            'the work dir of a training.'
        )
    found = find_latest(path)
    if found is None:
        raise InputError(
            f'the work dir {path} has no checkpoint, because it contains no '
            'file epoch_N.pth or iter_N.pth. Name the work dir of a training '
            'that has written one, or a checkpoint file.'
        )
    return found


def read_checkpoint(path: str) -> Checkpoint:
    """Read a checkpoint with MMEngine's loader.

    Args:
        path (str): A file, or any name that MMEngine loads from.

    Raises:
        InputError: If the file does not exist, is damaged, would run code,
            or is not a checkpoint.
    """
    try:
        _check_sums(path)
        with safe_loading():
            content = CheckpointLoader.load_checkpoint(
                path, map_location='cpu', logger='silent'
            )
    except FileNotFoundError as error:
        raise InputError(
            f'the checkpoint {path} does not exist, or is not a file. Name a '
            'checkpoint file.'
        ) from error
    except PermissionError as error:  # Of the file, or of a download's folder.
        remedy = (
            'Set TORCH_HOME to a folder that you can write'
            if '://' in path
            else 'Change its permissions'
        )
        raise InputError(
            f'the checkpoint {path} cannot be read ({error}). {remedy}.'
        ) from error
    except pickle.UnpicklingError as error:
        if 'Weights only load failed' not in str(error):
            raise DamagedCheckpoint(_damaged(path)) from error
        raise InputError(
            f'the checkpoint {path} was refused: it holds '
            f'{_refused(error)}, which could run code. Load only files of '
            'MMEngine, or files of torch that contain only tensors.'
        ) from error
    except (InputError, URLError):
        raise
    except Exception as error:  # A damaged pickle may raise any exception.
        if 'TorchScript' in str(error):
            raise InputError(
                f'{path} holds a TorchScript program, not a checkpoint with a '
                'state dict. Name the checkpoint that it was made from.'
            ) from error
        raise DamagedCheckpoint(_damaged(path)) from error
    if not isinstance(content, dict) or not isinstance(
        content.get('state_dict', {}), dict
    ):
        raise InputError(
            f'{path} holds a {_kind(content)}, not a checkpoint with a state dict. '
            'Name a file that training or tools/convert.py has written.'
        )
    return Checkpoint(path, content)


def _check_sums(path: str) -> None:
    """Compare a file's contents with its checksums, which torch ignores."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
        if damaged:
            raise zipfile.BadZipFile(damaged)


def _damaged(path: str) -> str:
    return (
        f'the checkpoint {path} cannot be read: it is truncated or damaged, '
        'or not a checkpoint of torch. Use an earlier one, or copy it again.'
    )


def _kind(content) -> str:
    if isinstance(content, dict):
        kind = type(content['state_dict']).__name__
        return f'dict whose state_dict is of type {kind}'
    return type(content).__name__


def _refused(error: Exception) -> str:
    for line in str(error).splitlines():
        if 'GLOBAL ' in line:
            return line.split('GLOBAL ')[1].split()[0]
    return 'more than tensors and plain values'
