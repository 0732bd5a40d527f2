"""The block device behind a directory: io.max takes disks, not partitions, and no file system without one."""

import os
import stat
from pathlib import Path
from typing import Final

_BLOCK: Final = Path("/sys/dev/block")


class NoDevice(Exception):
    """There is no block device to limit; the text says why, and the remedy."""


def block_device(directory: Path) -> str:
    """ "8:0" for the disk behind the directory.

    :raises NoDevice: tmpfs, network file systems, an overlay whose upper layer cannot be seen from here
    """
    number = os.stat(directory).st_dev
    if os.major(number) == 0:  # not a disk of its own: the mount table knows what is below
        return _below(directory)
    return disk_of(number)


def disk_of(number: int, known: Path = _BLOCK) -> str:
    """The whole disk of a partition, else the device itself (a mapped device has its own queue, and is limited there).

    :raises NoDevice: the kernel has no such block device
    """
    name = f"{os.major(number)}:{os.minor(number)}"
    entry = known / name
    if not entry.exists():
        raise NoDevice(f"block device {name} is not in /sys/dev/block")
    if (entry / "partition").exists():
        return (entry.resolve().parent / "dev").read_text(encoding="utf-8").strip()
    return name


def is_stacked(device: str, known: Path = _BLOCK) -> bool:
    """Whether the device is made of others (dm, md)."""
    slaves = known / device / "slaves"
    return slaves.is_dir() and any(slaves.iterdir())


def _below(directory: Path) -> str:
    kind, source, options = mount_of(directory, Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    if kind == "overlay":
        return _below_overlay(directory, options)
    if source.startswith("/dev/"):  # btrfs has an anonymous number and names its disk as the source
        try:
            status = os.stat(source)
        except OSError as error:
            raise NoDevice(
                f"{source}, the source of {directory}, is not visible: {error.strerror}"
            ) from error
        if stat.S_ISBLK(status.st_mode):
            return disk_of(status.st_rdev)
    raise NoDevice(f"{directory} lies on {kind}, which has no block device; put the data directory on a disk")


def _below_overlay(directory: Path, options: str) -> str:
    words = dict(word.split("=", 1) for word in options.split(",") if "=" in word)
    upper = words.get("upperdir", "")
    if not upper or not os.path.isdir(upper):
        raise NoDevice(
            f"{directory} lies on an overlay whose upper layer is not visible here; put the data directory on a volume"
        )
    return block_device(Path(upper))


def mount_of(directory: Path, mountinfo: str) -> tuple[str, str, str]:
    """Kind, source and super-block options of the mount that holds the directory (proc_pid_mountinfo(5))."""
    real = os.path.realpath(directory)
    best, found = "", ("unknown", "", "")
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        point = unescaped(left.split()[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of mounts on one point the later covers the earlier
            kind, source, *options = right.split(" ", 2)
            best, found = point, (kind, unescaped(source), unescaped(options[0]) if options else "")
    return found


def unescaped(word: str) -> str:
    """The kernel writes space, tab, newline and backslash in these tables as octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        word = word.replace(code, character)
    return word
