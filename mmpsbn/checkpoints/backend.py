"""Checkpoints that are written completely or not at all."""

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
    """A backend of MMEngine for local files, safe from kills and full disks.

    A file is written under another name and renamed when it is complete.
    MMEngine removes old checkpoints before it writes the next one. This
    backend removes them afterwards, so there is always a checkpoint.
    """

    # Shared by all instances, because MMEngine removes with one instance and
    # writes with another.
    _to_remove: list[str] = []

    def put(self, obj: bytes, filepath) -> None:
        """Write a file, then remove the files that wait for removal.

        Args:
            obj (bytes): The content.
            filepath (str or Path): The file.

        Raises:
            InputError: If the file cannot be written. No file has changed
                then.
        """
        try:
            os.makedirs(osp.dirname(filepath) or '.', exist_ok=True)
            write_atomically(filepath, obj)
        except OSError as error:
            raise InputError(
                f'{filepath} cannot be written ({error.strerror}). Earlier '
                'checkpoints have not changed, and --resume continues from '
                'the last one.'
            ) from error
        while self._to_remove:
            path = self._to_remove.pop()
            if osp.isfile(path) and path != str(filepath):
                os.remove(path)

    def remove(self, filepath) -> None:
        """Remove a file as soon as the next one has been written.

        Args:
            filepath (str or Path): The file.
        """
        self._to_remove.append(str(filepath))


def use_atomic_checkpoints(runner: Runner) -> None:
    """Make a runner write its checkpoints with :class:`AtomicFileBackend`.

    A backend that the config chooses with ``backend_args`` stays.

    Args:
        runner (Runner): Its hooks are changed in place.
    """
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and not (
            hook.backend_args or hook.file_client_args
        ):
            hook.backend_args = dict(backend=NAME)
