"""One stack for the whole lane; each test leaves it with three ready workers, or scales it itself."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.e2e.api import Api
from tests.e2e.stack import Stack


@pytest.fixture(scope="session")
def engine() -> None:
    """This lane never skips: without an engine it says what is missing."""
    if shutil.which("docker") is None:
        pytest.fail("the e2e tests need a container engine with `docker compose` 2: no `docker` in PATH")
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            pytest.fail(
                f"the e2e tests need a container engine: `{' '.join(command)}`: {done.stderr.strip()}"
            )


@pytest.fixture(scope="session")
def stack(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory: Path = tmp_path_factory.mktemp("e2e")
    stack = Stack(directory)
    try:
        stack.run("build", seconds=900)
        stack.scale(3)
        yield stack
    finally:
        stack.down()


@pytest.fixture(scope="session")
def api(stack: Stack) -> Api:
    return stack.api()


@pytest.fixture
def three(stack: Stack, api: Api) -> set[str]:
    """The ids of three ready workers, whatever the test before left."""
    if len(api.ready()) != 3 or len(stack.containers("worker", "running")) != 3:
        stack.scale(3)
    return api.wait_ready(3)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the containers said during it."""
    report = yield
    stack = getattr(item, "funcargs", {}).get("stack")
    if report.failed and isinstance(stack, Stack):
        since = f"{int(time.time() - call.start) + 2}s"
        said = stack.run("logs", "--no-color", "--since", since, status=None)
        report.sections.append(("containers", said[-20000:]))
    return report
