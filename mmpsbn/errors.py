"""The errors that a user can mend."""

import errno

# The disk, or the user's part of it; and what a process may write.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Files and folders of others, and read-only file systems.
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


class InputError(ValueError):
    """What the user gave cannot be used; the message says what to do."""
