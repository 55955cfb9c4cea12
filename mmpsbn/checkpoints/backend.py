"""Checkpoints that are complete whenever they can be seen."""

import os
import os.path as osp

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmpsbn.errors import InputError
from mmpsbn.files import write_atomically

NAME = 'atomic_files'


@register_backend(NAME)
class AtomicFileBackend(LocalBackend):
    """MMEngine's files on a local disk, safe from kills and full disks.

    A file is written under another name and renamed when it is complete.
    MMEngine removes old checkpoints before it writes the next one. Here, a
    removal waits for the next file, so there is always a checkpoint.
    """

    # Shared, because MMEngine removes by one instance and writes by another.
    _to_remove: list[str] = []

    def put(self, obj: bytes, filepath) -> None:
        """Write a file, then remove the files that have waited for it.

        Raises:
            InputError: If it cannot be written. Nothing has changed then.
        """
        try:
            os.makedirs(osp.dirname(filepath) or '.', exist_ok=True)
            write_atomically(filepath, obj)
        except OSError as error:
            raise InputError(
                f'{filepath} cannot be written '
                f'({error.strerror}). Earlier checkpoints have '
                'not changed, and --resume continues from the '
                'last one.'
            ) from error
        while self._to_remove:
            path = self._to_remove.pop()
            if osp.isfile(path) and path != str(filepath):
                os.remove(path)

    def remove(self, filepath) -> None:
        """Remove a file when the next one is complete."""
        self._to_remove.append(str(filepath))


def use_atomic_checkpoints(runner: Runner) -> None:
    """Let a runner write its checkpoints with :class:`AtomicFileBackend`.

    A backend that the config chooses by ``backend_args`` is kept.
    """
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and not (
            hook.backend_args or hook.file_client_args
        ):
            hook.backend_args = dict(backend=NAME)
