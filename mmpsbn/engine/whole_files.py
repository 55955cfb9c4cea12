"""Checkpoints that are never seen half-written."""

import os
import os.path as osp
from typing import List

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmpsbn.errors import InputError

NAME = 'whole_files'


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
        partial = f'{filepath}.partial'
        try:
            os.makedirs(osp.dirname(filepath) or '.', exist_ok=True)
            with open(partial, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, filepath)
        except OSError as error:
            if osp.isfile(partial):
                os.remove(partial)
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
