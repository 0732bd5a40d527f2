"""`make test-limits`: the tests of this folder where cgroup v2 controllers are delegated, else in user-mode Linux.

Arguments go to pytest, whose closing line is the last. It never skips: what is missing is said, and fails.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from jobcluster_worker.cgroup import device, place
from jobcluster_worker.cgroup.tree import CONTROLLERS

from tests.limits.guest import Guest, GuestUnavailable
from tests.limits.newer_root import host_can_spawn_into_cgroups, newer_root

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
GUEST_SCRATCH = "/mnt/scratch"
LIMITS_N = int(os.environ.get("LIMITS_N", "20"))
TEST_SECONDS = 120 + 3 * LIMITS_N
GUEST_SECONDS = 900 + 6 * LIMITS_N
NOTHING_SELECTED = pytest.ExitCode.NO_TESTS_COLLECTED


def native_scratch(checkout: Path = CHECKOUT) -> Path | None:
    """A directory on a disk below the checkout, where this very host gives root all four controllers; else None."""
    try:
        found = place.find_place()
        offered = (found.base / "cgroup.controllers").read_text().split()
        device.block_device(checkout)
    except (place.NoPlace, device.NoDevice, OSError):
        return None
    if found.is_container:  # sessions and delegated groups, which are tested too, are of a host
        return None
    if os.geteuid() != 0 or not set(CONTROLLERS) <= set(offered):
        return None
    (checkout / "build").mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(dir=checkout / "build", prefix="limits-"))


def main() -> int:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("LIMITS_", "JOBCLUSTER_LIMITS_"))
    }
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    if not sys.stdout.isatty():
        environment["NO_COLOR"] = "1"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--timeout={TEST_SECONDS}"]
    command += [str(HERE), *sys.argv[1:]]
    if scratch := native_scratch():
        environment = {**os.environ, **environment, "JOBCLUSTER_LIMITS_SCRATCH": str(scratch)}
        try:
            return subprocess.run(command, env=environment, check=False).returncode
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    environment["JOBCLUSTER_LIMITS_SCRATCH"] = GUEST_SCRATCH
    try:
        if not host_can_spawn_into_cgroups():
            if failed := run_on_newer_system(environment):
                return failed
            # It has just run, and does with a stand-in what test_stack_holds.py does with the real worker.
            command.append(f"--ignore={HERE / 'test_limits.py'}")
        guest = Guest(shares={str(CHECKOUT): CHECKOUT}, timeout_seconds=GUEST_SECONDS)
        return in_checkout(guest, str(CHECKOUT), command, environment)
    except GuestUnavailable as error:
        sys.stderr.write(f"test-limits: {error}\n")
        return 1


def in_checkout(guest: Guest, checkout: str, command: list[str], environment: dict[str, str]) -> int:
    return guest.run(["sh", "-c", 'cd "$0" && exec "$@"', checkout, *command], environment)


def run_on_newer_system(environment: dict[str, str]) -> int:
    """The worker's rooms alone (stdlib only), by that system's Python and our pytest, which is pure Python."""
    place = "/mnt/checkout"
    packages = Path(pytest.__file__).parent.parent
    guest = Guest(
        root=newer_root(CHECKOUT / "build" / "limits-root"),
        shares={place: CHECKOUT, "/mnt/packages": packages},
        timeout_seconds=GUEST_SECONDS,
    )
    files = [f"tests/limits/test_{name}.py" for name in ("leaves", "limits", "places", "hostile")]
    command = ["python3", "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", place]
    command.append(f"--confcutdir={place}/tests/limits")  # what the others share needs more than the stdlib
    command += ["--import-mode=importlib", "-W", "error", *files, *sys.argv[1:]]
    environment = {
        **environment,
        "PYTHONPATH": f"{place}:{place}/services/worker:/mnt/packages",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    sys.stdout.write("On a system whose C library spawns into cgroups:\n")
    sys.stdout.flush()
    failed = in_checkout(guest, place, command, environment)
    return 0 if failed == NOTHING_SELECTED else failed


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the guest does not outlive us
    sys.exit(main())
