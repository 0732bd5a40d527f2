"""A machine with a pure cgroup v2 kernel, as an ordinary process: Debian's user-mode Linux.

Its root directory is one of the host's (the host's own by default), mounted read-only; /tmp, /run and the like are the
guest's own, /scratch is an ext4 file system on a block device. It boots in about two seconds and has one CPU.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = {"linux.uml": "user-mode-linux", "mkfs.ext4": "e2fsprogs", "dmsetup": "dmsetup"}
NEVER_CAME_BACK = 125
_LAST_WORDS = (b"sysrq: Power Off\n", b"reboot: Power down\n")

INIT = Path(__file__).with_name("guest_init.sh")


class GuestUnavailable(Exception):
    """The guest cannot be had here; the text says what to install."""


@dataclass(frozen=True, slots=True)
class Guest:
    """How to boot. `shares` are directories of the host by the path where the guest sees them, writable.

    A root of another system than the host's must have a copy of guest_init.sh as /guest_init.sh.
    """

    root: Path = Path("/")
    shares: Mapping[str, Path] = field(default_factory=dict)
    memory: str = "1280M"
    disk_mib: int = 512
    timeout_seconds: float = 900

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
        """Boots, runs one command as root, powers off; the command's exit status, 125 when the guest died."""
        ensure_packages()
        with tempfile.TemporaryDirectory(prefix="guest-") as name:
            place = Path(name)
            self._write_control(place / "control", command, environment or {})
            self._make_disk(place / "disk")
            if not self._boot(place):
                return NEVER_CAME_BACK
            status = place / "control" / "status"
            text = status.read_text().strip() if status.exists() else ""
            return int(text) if text else NEVER_CAME_BACK

    def _boot(self, place: Path) -> bool:
        """Runs the kernel to its power-off and passes its console on; False when it took too long."""
        with subprocess.Popen(
            self._argv(place),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        ) as kernel:
            # Every process of the guest is a process here, of the kernel's group.
            alarm = threading.Timer(self.timeout_seconds, os.killpg, (kernel.pid, signal.SIGKILL))
            alarm.start()
            try:
                assert kernel.stdout is not None
                _pass_on(kernel.stdout.fileno())
                in_time = alarm.is_alive()
            finally:
                alarm.cancel()
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(kernel.pid, signal.SIGKILL)
        if not in_time:
            sys.stderr.write(f"the guest was not done after {self.timeout_seconds:.0f} s\n")
        return in_time

    def _write_control(self, control: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
        control.mkdir()
        (control / "shares").write_text("".join(f"{path}\t{place}\n" for place, path in self.shares.items()))
        exports = [f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()]
        (control / "command").write_text("".join(exports) + f"exec {shlex.join(command)}\n")

    def _make_disk(self, disk: Path) -> None:
        with disk.open("wb") as file:
            file.truncate(self.disk_mib << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True, env=_system_path())

    def _argv(self, place: Path) -> list[str]:
        own = self.root == Path("/")
        return [
            shutil.which("linux.uml", path=_system_path()["PATH"]) or "linux.uml",
            f"mem={self.memory}",
            f"ubd0={place / 'disk'}",
            "root=/dev/root",
            "rootfstype=hostfs",
            f"rootflags={self.root}",
            "ro",
            f"init={INIT if own else '/guest_init.sh'}",
            f"GUEST_CONTROL={place / 'control'}",
            f"uml_dir={place}",
            "umid=guest",
            "con=null",
            "con0=fd:0,fd:1",
            "quiet",
            "loglevel=1",
        ]


def _pass_on(console: int) -> None:
    """Copies the console to stdout as it comes, but for the kernel's own last words."""
    line = b""
    while part := os.read(console, 65536):
        for piece in part.replace(b"\r", b"").splitlines(keepends=True):
            line += piece
            if not any(line.startswith(word[: len(line)]) for word in _LAST_WORDS):
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
                line = b""
            elif line.endswith(b"\n"):
                line = b""


def ensure_packages() -> None:
    """Installs Debian's packages that are missing. Raises GuestUnavailable where that is not possible."""
    missing = [
        package
        for program, package in PACKAGES.items()
        if not shutil.which(program, path=_system_path()["PATH"])
    ]
    if not missing:
        return
    remedy = f"apt-get install {' '.join(missing)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise GuestUnavailable(
            f"no cgroup v2 controllers here, and no user-mode Linux to have them in: {remedy}"
        )
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
        if subprocess.run(
            ["apt-get", *arguments], env=quiet, stdout=subprocess.DEVNULL, check=False
        ).returncode:
            raise GuestUnavailable(f"apt-get {arguments[0]} failed; needed: {remedy}")


def _system_path() -> dict[str, str]:
    return {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
