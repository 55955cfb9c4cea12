"""Files that are complete whenever they can be seen."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmpsbn.errors import InputError, is_disk_error


def write_atomically(path, data: bytes) -> None:
    """Write a file under another name, and rename it when it is complete.

    Args:
        path (str or Path): The file.
        data (bytes): Its content.

    Raises:
        OSError: If the file cannot be written. It is unchanged then.
    """
    partial = f'{path}.partial'
    try:
        with open(partial, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        if os.path.isfile(partial):
            os.remove(partial)
        raise


@contextmanager
def output_folder(out: str) -> Iterator[str]:
    """Yield a temporary folder, and move its files to ``out`` at the end.

    Either all files are moved or none. Other files of ``out`` stay.

    Args:
        out (str): The folder. It is made if it does not exist.

    Raises:
        InputError: If the files cannot be written. Nothing has changed then.
    """
    in_body = False
    try:
        os.makedirs(out, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.writing-', dir=out) as inside:
            new, old = Path(inside, 'new'), Path(inside, 'old')
            new.mkdir()
            in_body = True
            yield str(new)
            in_body = False
            _move(new, old, Path(out))
    except OSError as error:
        # An image that cannot be read, say, is not a file of this folder.
        if in_body and not (
            str(error.filename).startswith(inside)
            if error.filename
            else is_disk_error(error)
        ):
            raise
        raise InputError(
            f'{out} cannot be written: {error.strerror or error}. Existing files were '
            'not changed. Correct the cause, or choose another place.'
        ) from error


def _move(new: Path, old: Path, out: Path) -> None:
    """Move the files of a folder; undo it if one cannot be moved."""
    moved: list[tuple[Path, Path]] = []
    try:
        for file in sorted(path for path in new.rglob('*') if path.is_file()):
            target = out / file.relative_to(new)
            backup = old / file.relative_to(new)
            target.parent.mkdir(parents=True, exist_ok=True)
            backup.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                _copy(target, backup)
            os.replace(file, target)
            moved.append((target, backup))
    except OSError:
        for target, backup in moved:
            if backup.exists():
                os.replace(backup, target)
            else:
                target.unlink()
        raise


def _copy(file: Path, to: Path) -> None:
    try:
        os.link(file, to)  # Without a moment in which the file is missing.
    except OSError:
        if file.is_file():
            shutil.copy2(file, to)


@contextmanager
def output_files(*files: str) -> Iterator[list[str]]:
    """Yield temporary names for files, see :func:`output_folder`.

    Args:
        files (str): Files of one folder.
    """
    with output_folder(os.path.dirname(os.path.abspath(files[0]))) as folder:
        yield [os.path.join(folder, os.path.basename(file)) for file in files]
