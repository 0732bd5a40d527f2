"""Sixty seconds of load while the workers' servers are killed and frozen; then every promise is checked.

NEMESIS_SEED repeats a run, NEMESIS_SECONDS changes its length.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.cluster import descendants, marked, running_cluster
from tests.nemesis import witness
from tests.nemesis.checker import check
from tests.nemesis.faults import Nemesis
from tests.nemesis.load import Load

SECONDS = float(os.environ.get("NEMESIS_SECONDS", "60"))
SEED = int(os.environ.get("NEMESIS_SEED") or random.SystemRandom().randrange(1 << 32))
SLOTS = 10


@pytest.fixture
def witness_file() -> Iterator[Path]:
    """Where every job may write, whatever its user, and outside what a job has of its own, such as /tmp."""
    base = Path("/var/lib") if os.geteuid() == 0 else Path(tempfile.gettempdir())
    directory = Path(tempfile.mkdtemp(prefix="jobcluster-nemesis-", dir=base))
    directory.chmod(0o755)
    file = directory / "witness"
    file.touch()
    file.chmod(0o666)
    yield file
    shutil.rmtree(directory)


@pytest.mark.timeout(SECONDS + 300)
def test_nothing_is_lost_or_done_twice_while_servers_die(
    tmp_path: Path, witness_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        print(f"\nnemesis: NEMESIS_SEED={SEED} NEMESIS_SECONDS={SECONDS:g}")  # noqa: T201 - the lane's one word
    with running_cluster(tmp_path, workers=2) as cluster:
        until = time.monotonic() + SECONDS
        load = Load(cluster, witness_file, SEED, SLOTS, until)
        nemesis = Nemesis(cluster, SEED, until)
        load.start()
        nemesis.start()
        nemesis.join()
        load.join()
        launchers = [worker.pid for worker in cluster.workers]
        left = {
            pid: line
            for pid in launchers
            for pid, line in descendants(pid).items()
            if str(witness_file) in line
        }
        found = check(load.records, witness.read(witness_file))
        logs = cluster.logs() if found or load.errors else ""
    ends = Counter(r.job["reason"] for r in load.records if r.job is not None)
    with capsys.disabled():
        print(f"nemesis: {len(load.records)} jobs, {dict(ends)}, {dict(nemesis.done)}")  # noqa: T201
    assert not found and not load.errors and not nemesis.errors, "\n".join(
        [f"NEMESIS_SEED={SEED}", *found, *load.errors, *nemesis.errors, logs]
    )
    assert not left and not marked(str(witness_file))
    assert len(load.records) >= SECONDS / 2
    assert sum(nemesis.done.values()) >= SECONDS / 10
