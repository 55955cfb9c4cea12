import errno

# The disk, or the user's part of it; and what a process may write.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """What the user gave cannot be used; the message says what to do."""
