from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from pathlib import Path

import pytest
from jobcluster_worker.launcher import claims
from jobcluster_worker.launcher.claims import Claim
from jobcluster_worker.launcher.ends import EndLog, end_log_path
from jobcluster_worker.launcher.shapes import State, Task, TaskKey, new_task
from jobcluster_worker.output.index import STDOUT
from jobcluster_worker.output.log import OutputLog
from jobcluster_worker.server.remains import Remains
from jobcluster_worker.server.tasks import TaskTable
from structlog.testing import capture_logs

from tests.unit.worker.full_disk import files_of_at_most
from tests.unit.worker.launcher.process_tree import wait_until


class Disk:
    """A worker's directories as an earlier server, launcher and supervisors left them."""

    def __init__(self, directory: Path) -> None:
        self.data, self.state = directory / "data", directory / "state"
        self.state.mkdir()
        (self.state / "ends").mkdir()
        claims.prepare_directories(self.data)
        self.table = TaskTable()
        self.remains = Remains(self.data, self.state, "now", self.table, "/the/log")

    async def look(self, alive: Iterable[str] = (), ungreeted: Iterable[str] = ()) -> None:
        await self.remains.settle(await self.remains.find(set(alive), set(ungreeted)))

    def task(
        self,
        job_id: str,
        *,
        incarnation: str = "before",
        supervisor: str = "s1",
        output: bytes | None = None,
        end: State | None = None,
    ) -> TaskKey:
        """A claimed task, with output of which the last bytes are not indexed, and with an end on request."""
        key = (job_id, 0, 1)
        directory = claims.take(self.data, Claim(key, incarnation, supervisor, -1))
        if output is not None:
            log = OutputLog(directory, max_bytes=1 << 20)
            log.write(STDOUT, output[:2], 1.0)
            log.write(STDOUT, output[2:], 1.0)
            if end is not None:
                log.seal(dict(self.ended(key, end)))
            log.close()
        return key

    def ended(self, key: TaskKey, state: State, code: int = 0) -> Task:
        task = new_task(key, state)
        task["reason"], task["exit_code"] = "exited", code
        return task

    def logged(self, incarnation: str, supervisor: str, *tasks: Task) -> Path:
        path = end_log_path(self.state, incarnation, supervisor)
        log = EndLog(path)
        for task in tasks:
            log.append(task)
        log.close(remove=False)
        return path

    def known(self, key: TaskKey) -> Task:
        entry = self.table.get(key)
        assert entry is not None
        return entry.task

    def claims(self) -> set[TaskKey]:
        return {claim.key for claim in claims.held(self.data)}


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


async def test_a_claim_of_an_earlier_life_without_an_end_is_lost_with_its_output_whole(disk: Disk) -> None:
    key = disk.task("job", output=b"12345")
    await disk.look()
    task = disk.known(key)
    assert (task["state"], task["reason"], task["exit_code"]) == ("lost", "worker_lost", None)
    assert task["output"]["merged"] == {"bytes": 5, "sha256": hashlib.sha256(b"12345").hexdigest()}
    assert task["output"]["log_path"] == "/the/log"
    assert disk.remains.end_of(key) == task


async def test_an_end_is_found_in_the_output_or_in_the_end_log_of_the_dead(disk: Disk) -> None:
    sealed = disk.task("sealed", output=b"x", end="succeeded")
    logged = disk.task("logged", output=b"abc")
    bare = disk.task("bare")
    path = disk.logged("before", "s1", disk.ended(logged, "failed", 7), disk.ended(bare, "failed", 8))
    await disk.look()
    assert disk.known(sealed)["state"] == "succeeded"
    assert (disk.known(logged)["exit_code"], disk.known(bare)["exit_code"]) == (7, 8)
    assert disk.known(logged)["output"]["merged"]["bytes"] == 3
    disk.remains.release([logged])
    assert path.exists()
    disk.remains.release([bare, sealed])
    assert (path.exists(), disk.claims()) == (False, set())


async def test_an_output_that_cannot_be_sealed_keeps_its_claim_till_it_is(disk: Disk) -> None:
    key = disk.task("full", output=b"12345")
    path = disk.logged("before", "s1", disk.ended(key, "failed", 7))
    with files_of_at_most(0), capture_logs():
        await disk.look()
        # Told as it was logged, for the controller must know; and nobody may take the output for a whole one.
        assert disk.known(key)["exit_code"] == 7
        assert disk.remains.end_of(key) is None
        disk.table.forget(key)
        disk.remains.release([key])
        assert (disk.claims(), path.exists()) == ({key}, True)
        mending = asyncio.create_task(disk.remains.mend())
        await asyncio.sleep(0)
    await asyncio.to_thread(wait_until, lambda: not disk.claims(), "the release of its claim")
    mending.cancel()
    end = disk.remains.end_of(key)
    assert end is not None
    assert (end["exit_code"], end["output"]["merged"]["bytes"], path.exists()) == (7, 5, False)


async def test_an_output_whose_index_is_damaged_holds_up_no_other(disk: Disk) -> None:
    damaged, good = disk.task("a-damaged", output=b"12345"), disk.task("good", output=b"12345")
    (disk.remains.directory(damaged) / "index").write_bytes(bytes(48))
    await disk.look()
    assert {disk.known(key)["state"] for key in (damaged, good)} == {"lost"}
    assert (disk.remains.end_of(damaged), disk.remains.end_of(good)) == (None, disk.known(good))


async def test_claims_of_living_supervisors_are_theirs_and_those_of_silent_ones_are_starting(
    disk: Disk,
) -> None:
    theirs = disk.task("theirs", incarnation="now", supervisor="s1")
    silent = disk.task("silent", incarnation="now", supervisor="s2")
    gone = disk.task("gone", incarnation="now", supervisor="s3")
    kept = disk.logged("now", "s1", disk.ended(theirs, "succeeded"))
    await disk.look({"s1", "s2"}, {"s2"})
    assert disk.table.get(theirs) is None
    assert disk.known(silent)["state"] == "starting"
    assert (disk.known(gone)["state"], disk.known(gone)["reason"]) == ("failed", "supervisor_lost")
    assert kept.exists()


async def test_ends_that_were_acknowledged_are_not_told_again_and_their_log_goes(disk: Disk) -> None:
    path = disk.logged("before", "s1", disk.ended(("heard", 0, 1), "succeeded"))
    await disk.look()
    assert (len(disk.table), path.exists()) == (0, False)


async def test_a_start_whose_supervisor_died_before_it_claimed_is_left_to_who_waits_for_it(
    disk: Disk,
) -> None:
    waited, forgotten = ("waited", 0, 1), ("forgotten", 0, 1)
    for key in (waited, forgotten):
        disk.table.update(new_task(key, "starting"), "s1")
    claimed = disk.task("claimed", incarnation="now")
    await disk.remains.lost("s1", [waited, forgotten], {waited, claimed})
    assert disk.table.get(waited) is None
    assert disk.known(forgotten)["reason"] == "supervisor_lost"
    assert disk.known(claimed)["reason"] == "supervisor_lost"


async def test_a_buried_attempt_is_stopped_and_cannot_be_claimed_any_more(disk: Disk) -> None:
    key = ("early", 0, 1)
    task = await disk.remains.bury(key, "task_failed")
    assert task is not None
    assert (task["state"], task["reason"]) == ("stopped", "task_failed")
    assert await disk.remains.bury(key, "stopped") is None
    with pytest.raises(claims.Claimed):
        claims.take(disk.data, Claim(key, "now", "s1", -1))
    # Also for a server that comes after this one.
    again = TaskTable()
    remains = Remains(disk.data, disk.state, "later", again)
    await remains.settle(await remains.find(set(), set()))
    entry = again.get(key)
    assert entry is not None
    assert entry.task == task


async def test_an_attempt_that_could_not_be_buried_can_be_buried_later(disk: Disk) -> None:
    key = ("early", 0, 1)
    with files_of_at_most(0), pytest.raises(OSError, match="too large"):
        await disk.remains.bury(key, "stopped")
    assert (disk.claims(), disk.remains.attempts("early")) == (set(), [])
    task = await disk.remains.bury(key, "stopped")
    assert task is not None
    assert disk.remains.end_of(key) == task


def test_attempts_are_listed_in_order_and_strange_names_are_passed_over(disk: Disk) -> None:
    for name in ("10.1", "2.11", "2.9", "x.1", "3", ".", "4.y"):
        (disk.data / "jobs" / "job" / name).mkdir(parents=True, exist_ok=True)
    assert disk.remains.attempts("job") == [("job", 2, 9), ("job", 2, 11), ("job", 10, 1)]
    assert disk.remains.attempts("none") == []
    # Its directory cannot be looked at: that it has none must not be said.
    (disk.data / "jobs" / "loop").symlink_to("loop")
    with pytest.raises(OSError):
        disk.remains.attempts("loop")
    assert disk.remains.end_of(("job", 2, 9)) is None
