"""Files that are complete whenever they can be seen; for code without MMCV."""

import os
import os.path as osp


def write_whole(path, data: bytes) -> None:
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
        if osp.isfile(partial):
            os.remove(partial)
        raise
