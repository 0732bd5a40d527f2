"""Tests of limits and isolation on a kernel with cgroup v2; `make test-limits` (run.py) finds or boots one."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jobcluster_worker
import pytest

SOURCES = Path(jobcluster_worker.__file__).parent.parent
ANSWER_SECONDS = 30.0
LIMITS_N = int(os.environ.get("LIMITS_N", "20"))


class Yard:
    """The process of yard.py. Its launch may be wrapped, as by unshare, to stand in a container's place."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.hello = self.ask("hello")

    def ask(self, verb: str, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"verb": verb, **request}) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], ANSWER_SECONDS)
        if not ready:
            self.process.send_signal(signal.SIGUSR1)  # it says on stderr where it is
            pytest.fail(f"no answer to {verb} {request} in {ANSWER_SECONDS} s")
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def counts_as(self, before: dict[str, Any]) -> bool:
        """Whether it comes to hold what it held before; the kernel takes ended threads apart a little later."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while (found := self.ask("count")) != before and time.monotonic() < deadline:
            time.sleep(0.01)
        return bool(found == before)

    def destroy(self) -> None:
        """After a failure: what was started must not disturb the next test."""
        if self.process.poll() is None:
            with contextlib.suppress(OSError):
                Path(self.hello["root"] or "/none", "cgroup.kill").write_text("1")
            self.process.kill()
            self.process.wait(20)
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()

    def start(self, name: str, *argv: str, **options: Any) -> dict[str, Any]:
        return self.ask("start", name=name, argv=list(argv), **options)

    def run(self, name: str, *argv: str, **options: Any) -> dict[str, Any]:
        """Starts and waits; the start's answer and the end's in one."""
        started = self.start(name, *argv, **options)
        assert "pid" in started, started
        return {**started, **self.ask("wait", name=name)}

    def python(self, name: str, script: str, **options: Any) -> dict[str, Any]:
        return self.run(name, python_for_all(), "-c", script, **options)


def python_for_all() -> str:
    """A Python that every user may run."""
    return next(name for name in ("/usr/local/bin/python3", "/usr/bin/python3") if os.access(name, os.X_OK))


@contextmanager
def open_yard(
    scratch: Path, wrapped: Sequence[str] = (), limits_worker: dict[str, Any] | None = None, **popen: Any
) -> Iterator[Yard]:
    data = Path(tempfile.mkdtemp(dir=scratch, prefix="data-"))
    data.chmod(0o755)
    argv = [*wrapped, sys.executable, "-I", "-S", str(Path(__file__).with_name("yard.py"))]
    argv += [str(SOURCES), str(data), json.dumps(limits_worker or {})]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **popen)
    yard = Yard(process)
    try:
        yield yard
        if process.poll() is None:
            yard.ask("close")
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(20) == 0
    finally:
        yard.destroy()
    shutil.rmtree(data)


@pytest.fixture(scope="session")
def scratch() -> Path:
    """A directory on a file system with a block device."""
    place = os.environ.get("JOBCLUSTER_LIMITS_SCRATCH")
    if place is None:
        pytest.fail("this is for `make test-limits`: it finds or boots a kernel with cgroup v2 controllers")
    return Path(place)


@pytest.fixture(scope="session", autouse=True)
def programs_stay_in_the_page_cache() -> Iterator[None]:
    """The guest's hostfs forgets a file's pages at its last close, which no disk does: each task would be charged
    for its interpreter, thrash on it at its memory limit, and never be killed."""
    with open(python_for_all(), "rb") as interpreter, open("/bin/sh", "rb") as shell:
        for file in (interpreter, shell):
            while file.read(1 << 20):
                pass
        yield


@pytest.fixture(scope="module")
def yard(scratch: Path) -> Iterator[Yard]:
    with open_yard(scratch) as opened:
        yield opened


@pytest.fixture
def new_yard(scratch: Path) -> Callable[..., Any]:
    return lambda scratch=scratch, **options: open_yard(scratch, **options)


@pytest.fixture(scope="session")
def cluster(scratch: Path) -> Iterator[Any]:
    from tests.limits.placed import two_workers  # needs more than the stdlib, which not every guest has

    with two_workers(scratch) as started:
        yield started


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Shows figures that were measured, also when the test holds."""

    def show(**figures: float) -> None:
        with capsys.disabled():
            sys.stdout.write(" ".join(["", *(f"{name}={value:.4g}" for name, value in figures.items()), ""]))

    return show


@pytest.fixture(scope="session")
def system_python() -> str:
    return python_for_all()


@pytest.fixture(scope="session")
def limits_n() -> int:
    """How often what could fail now and then is tried."""
    return LIMITS_N
