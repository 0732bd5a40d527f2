"""Disks that are full: by a limit on the size of files (setrlimit(2)), and, for root, by a small one of their own."""

from __future__ import annotations

import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writes of this process beyond the size fail."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@contextmanager
def small_disk(at: Path, size: int, files: int = 1000) -> Iterator[None]:
    """A disk of ``size`` bytes with room for so many files at an empty directory. Needs root."""
    options = f"size={size},nr_inodes={files},mode=711"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", at], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", at], check=True)
