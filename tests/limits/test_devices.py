"""Disk limits where the data directory is on a partition, a mapped device or an overlay, all of them real ones."""

import ctypes
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from jobcluster_worker.cgroup import device

MIB = 1 << 20
SECTOR = 512
SIZE = 48 * MIB
FIRST = 2048  # sector of the partition
WRITER = """
import mmap, os, time
fd = os.open("file", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
block = mmap.mmap(-1, 1 << 20)
began = time.monotonic()
for _ in range(6):
    os.write(fd, block)
print(time.monotonic() - began)
"""


def load(name: str) -> None:
    """Loads a module of the kernel unless it is there; user-mode Linux has its modules in a place of its own."""
    if (Path("/sys/module") / name.replace("-", "_")).exists():
        return
    for root in ("/lib/modules", "/usr/lib/uml/modules"):
        for path in Path(root, os.uname().release).rglob(f"{name}.ko"):
            number = {"x86_64": 313, "aarch64": 273}[platform.machine()]
            fd = os.open(path, os.O_RDONLY)
            done = ctypes.CDLL(None, use_errno=True).syscall(number, fd, b"", 0)
            os.close(fd)
            assert done == 0, f"{path}: {os.strerror(ctypes.get_errno())}"
            return
    pytest.fail(f"this kernel has no {name}, and no module of it is installed")


def said(*argv: str) -> str:
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, (argv, done.stderr)
    return done.stdout.strip()


class Maker:
    """Makes block devices out of a file, and file systems on them; undone with its stack."""

    def __init__(self, place: Path, undo: ExitStack) -> None:
        self.place = place
        self._undo = undo

    def loop(self) -> str:
        load("loop")
        image = self.place / "image"
        entry = bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + FIRST.to_bytes(4, "little")
        entry += (SIZE // SECTOR - FIRST).to_bytes(4, "little")
        with image.open("wb") as file:
            file.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
            file.truncate(SIZE)
        name = said("losetup", "--find", "--show", "--partscan", str(image))
        self._undo.callback(said, "losetup", "--detach", name)
        return name

    def mapped(self) -> str:
        load("dm-mod")
        name = f"jobcluster-{os.getpid()}"
        table = f"0 {SIZE // SECTOR} linear {self.loop()} 0"
        said("dmsetup", "create", name, "--noudevsync", "--noudevrules", "--table", table)
        self._undo.callback(said, "dmsetup", "remove", "--noudevsync", name)
        return "/dev/" + said("dmsetup", "info", "--columns", "--noheadings", "-o", "blkdevname", name)

    def mounted(self, block: str) -> Path:
        said("mkfs.ext4", "-q", "-F", block)
        return self._mount("-t", "ext4", block)

    def overlay(self) -> Path:
        load("overlay")
        lower, upper, work = (self.place / name for name in ("lower", "upper", "work"))
        for directory in (lower, upper, work):
            directory.mkdir()
        return self._mount("-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "none")

    def _mount(self, *words: str) -> Path:
        point = self.place / "mounted"
        point.mkdir()
        said("mount", *words, str(point))
        self._undo.callback(said, "umount", str(point))
        return point


@pytest.fixture
def maker(scratch: Path) -> Iterator[Maker]:
    with ExitStack() as undo:
        place = undo.enter_context(tempfile.TemporaryDirectory(dir=scratch, prefix="devices-"))
        yield Maker(Path(place), undo)


KINDS: dict[str, tuple[Callable[[Maker], Path], str]] = {
    "partition": (lambda maker: maker.mounted(maker.loop() + "p1"), "loop"),
    "mapped device": (lambda maker: maker.mounted(maker.mapped()), "dm-"),
    "overlay": (lambda maker: maker.overlay(), ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_writes_are_held_to_their_rate_and_counted_once(
    maker: Maker, new_yard: Any, system_python: str, kind: str, tell: Callable[..., None]
) -> None:
    make, name = KINDS[kind]
    data = make(maker)
    limited = device.block_device(data)
    assert Path("/sys/dev/block", limited).resolve().name.startswith(name)
    assert not (Path("/sys/dev/block") / limited / "partition").exists()
    with new_yard(scratch=data) as yard:
        assert yard.hello["enforced"]["io"]["ok"], yard.hello
        limits = {"io": {"write_bps": 2 * MIB}}
        done = yard.run("writer", system_python, "-c", WRITER, limits=limits)
        assert done["status"] == 0, done
        assert done["effective"]["io"]["write_bps"] == 2 * MIB
        rate = 6 / float(done["output"])
        written = done["usage"]["io_write_bytes"] / MIB
        tell(**{"MiB/s": rate, "MiB counted": written})
        assert rate == pytest.approx(2, rel=0.15)
        assert written == pytest.approx(6, rel=0.15)
