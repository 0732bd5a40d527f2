"""The root directory of a system whose C library can spawn straight into a cgroup, as the worker's image has.

glibc 2.39 and later can; on an older host the guest's own tests would only ever take the other way.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from tests.limits.guest import INIT, GuestUnavailable

IMAGE = os.environ.get("BASE_IMAGE", "python:3.13-slim")
RELEASE = "trixie"


def host_can_spawn_into_cgroups() -> bool:
    name, version = platform.libc_ver()
    major, minor, *_ = [*map(int, version.split(".")), 0, 0] if version else (0, 0)
    return name == "glibc" and (major, minor) >= (2, 39)


def newer_root(place: Path) -> Path:
    """Makes the root once: from the base image where a container engine has it, else from Debian's packages.

    :raises GuestUnavailable: neither can be had; the text says what to install
    """
    if not (place / INIT.name).exists():
        partial = place.with_name(f"{place.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if not (_from_image(partial) or _from_packages(partial)):
            shutil.rmtree(partial, ignore_errors=True)
            raise GuestUnavailable(
                f"no system with glibc 2.39 or later: neither the image {IMAGE} in a running container engine,"
                f" nor Debian {RELEASE} by mmdebstrap (as root: apt-get install mmdebstrap)"
            )
        shutil.copy(INIT, partial / INIT.name)
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
    shutil.copy(INIT, place / INIT.name)
    return place


def _quietly(*argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _from_image(place: Path) -> bool:
    if not shutil.which("docker") or _quietly("docker", "image", "inspect", IMAGE).returncode:
        return False
    container = _quietly("docker", "create", IMAGE).stdout.strip()
    try:
        archive = place / "image.tar"
        if _quietly("docker", "export", "-o", str(archive), container).returncode:
            return False
        unpacked = _quietly("tar", "-C", str(place), "--exclude=dev/*", "-xf", str(archive)).returncode == 0
        archive.unlink()
        return unpacked
    finally:
        _quietly("docker", "rm", "-f", container)


def _from_packages(place: Path) -> bool:
    if os.geteuid() != 0:
        return False
    if not shutil.which("mmdebstrap"):
        _quietly("apt-get", "install", "-y", "-qq", "--no-install-recommends", "mmdebstrap")
    if not shutil.which("mmdebstrap"):
        return False
    made = _quietly(
        "mmdebstrap", "--quiet", "--variant=minbase", "--include=python3", RELEASE, str(place), *_mirrors()
    )
    return made.returncode == 0


def _mirrors() -> list[str]:
    """The mirror that the host itself uses, where its sources name one; else mmdebstrap's default."""
    for source in Path("/etc/apt").glob("sources.list*/*.sources"):
        for line in source.read_text().splitlines():
            if line.startswith("URIs:"):
                return [line.split()[1]]
    return []
