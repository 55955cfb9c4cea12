"""Files that are never seen half-written, checkpoints above all."""

import os
import os.path as osp
import tempfile
from contextlib import contextmanager
from typing import Iterator, List

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmpsbn.errors import InputError
from mmpsbn.files import write_whole

NAME = 'whole_files'


@contextmanager
def whole_folder(out: str) -> Iterator[str]:
    """A folder to write to, whose files go to ``out`` if all goes well.

    Args:
        out (str): A folder; it is made, and keeps its other files.

    Raises:
        InputError: If they cannot be written; nothing has changed then.
    """
    try:
        os.makedirs(out, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.writing-', dir=out) as here:
            yield here
            for folder, _, names in os.walk(here):
                place = osp.join(out, osp.relpath(folder, here))
                os.makedirs(place, exist_ok=True)
                for name in names:
                    os.replace(osp.join(folder, name), osp.join(place, name))
    except OSError as error:
        raise InputError(f'{out} cannot be written: '
                         f'{error.strerror or error}; what was there is as it '
                         'was.') from error


@contextmanager
def replacing(*files: str) -> Iterator[List[str]]:
    """Names to write to, which become ``files`` if all goes well.

    Args:
        files (str): Of one folder, see :func:`whole_folder`.
    """
    with whole_folder(osp.dirname(osp.abspath(files[0]))) as folder:
        yield [osp.join(folder, osp.basename(file)) for file in files]


@register_backend(NAME)
class WholeFileBackend(LocalBackend):
    """MMEngine's files on a local disk, safe from kills and full disks.

    A file is written beside its place and moved there when it is whole.
    MMEngine removes the checkpoints that are too many before it writes the
    next: here a removal waits until that is whole, so that one checkpoint is
    there at any moment.
    """

    # Of all instances: MMEngine makes one to remove and another to write.
    _doomed: List[str] = []

    def put(self, obj: bytes, filepath) -> None:
        """Write a file, then remove those that have waited for it.

        Raises:
            InputError: If it cannot be written; nothing has changed then.
        """
        try:
            os.makedirs(osp.dirname(filepath) or '.', exist_ok=True)
            write_whole(filepath, obj)
        except OSError as error:
            raise InputError(f'{filepath} cannot be written '
                             f'({error.strerror}); earlier checkpoints are as '
                             'they were, and --resume goes on from the last '
                             'one.') from error
        while self._doomed:
            path = self._doomed.pop()
            if osp.isfile(path) and path != str(filepath):
                os.remove(path)

    def remove(self, filepath) -> None:
        """Remove a file once the next one is whole."""
        self._doomed.append(str(filepath))


def write_whole_checkpoints(runner: Runner) -> None:
    """Let a runner write its checkpoints by :class:`WholeFileBackend`.

    Those that a config sends elsewhere by ``backend_args`` are left alone.
    """
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and not (hook.backend_args
                                                     or hook.file_client_args):
            hook.backend_args = dict(backend=NAME)
