"""`make test-limits`: the tests of this folder where cgroup v2 controllers are delegated, else in user-mode Linux.

Arguments go to pytest, whose closing line is the last. It never skips: what is missing is said, and fails.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from jobcluster_worker.cgroup import device, place
from jobcluster_worker.cgroup.tree import CONTROLLERS

from tests.limits.guest import Guest, GuestUnavailable

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
GUEST_SCRATCH = "/mnt/scratch"


def native_scratch() -> Path | None:
    """A directory on a disk, where this very host gives root all four controllers; else None."""
    try:
        found = place.find_place()
        offered = (found.base / "cgroup.controllers").read_text().split()
        device.block_device(CHECKOUT)
    except (place.NoPlace, device.NoDevice, OSError):
        return None
    if os.geteuid() != 0 or not set(CONTROLLERS) <= set(offered):
        return None
    (CHECKOUT / "build").mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(dir=CHECKOUT / "build", prefix="limits-"))


def main() -> int:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(HERE), *sys.argv[1:]]
    environment = {
        name: value for name, value in os.environ.items() if name.startswith(("LIMITS_", "JOBCLUSTER_LIMITS"))
    }
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    if not sys.stdout.isatty():
        environment["NO_COLOR"] = "1"
    if scratch := native_scratch():
        return subprocess.run(
            command, env={**os.environ, **environment, "JOBCLUSTER_LIMITS_SCRATCH": str(scratch)}
        ).returncode
    environment["JOBCLUSTER_LIMITS_SCRATCH"] = GUEST_SCRATCH
    try:
        return Guest(shares={str(CHECKOUT): CHECKOUT}).run(
            ["sh", "-c", 'cd "$0" && exec "$@"', str(CHECKOUT), *command], environment
        )
    except GuestUnavailable as error:
        sys.stderr.write(f"test-limits: {error}\n")
        return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the guest does not outlive us
    sys.exit(main())
