"""Programs' files in the page cache at the worker's account, so that an OOM kill comes when it is due.

A page of a file is charged to who first reads it. Where a task at its memory limit holds nothing the kernel can take
back but its own program's pages, they are thrown out and read in again for ever; that counts as progress, and the OOM
killer never comes (seen with a hog of tmpfs on Linux 6.1). What the worker read first is not the task's to lose.
"""

import contextlib
import os
import stat
from typing import Final

_MOST_BYTES: Final = 64 << 20
_MOST_FILES: Final = 256
_CHUNK: Final = (
    128 << 10
)  # one call reads ahead no more than the device's read-ahead, whatever it is asked for

_known: set[tuple[int, int, int]] = set()


def read_ahead(path: bytes) -> None:
    """Has the kernel read the file, once per file and process; never raises: what cannot be read, exec will tell."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            identity = (status.st_dev, status.st_ino, status.st_mtime_ns)
            if identity in _known or not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
                return
            if len(_known) >= _MOST_FILES:
                _known.clear()
            _known.add(identity)
            for offset in range(0, status.st_size, _CHUNK):
                os.posix_fadvise(fd, offset, _CHUNK, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(fd)
