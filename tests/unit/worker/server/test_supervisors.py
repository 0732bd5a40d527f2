from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import signal
from pathlib import Path

import pytest
from jobcluster_common.errors import Invalid, NotFound, Unavailable
from jobcluster_worker.launcher.shapes import new_task
from jobcluster_worker.output.reader import OutputReader
from jobcluster_worker.output.recovery import recover
from jobcluster_worker.server import supervisors as module
from jobcluster_worker.server.jobs import Draining, StaleEpoch

from tests.unit.worker.server.rooms import Home, Rooms


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def claims(home: Home) -> list[str]:
    return sorted(os.listdir(home.data / "claims"))


async def test_a_start_becomes_an_end_and_an_acknowledged_end_leaves_its_output_only(
    home: Home, rooms: Rooms
) -> None:
    key = await rooms.start("job-1", "sh", "-c", "echo out; echo err >&2; exit 3")
    end = await rooms.end(key)
    assert (end["state"], end["reason"], end["exit_code"]) == ("failed", "exited", 3)
    assert end["output"]["merged"]["bytes"] == 8
    assert claims(home) == ["job-1.0.1"]
    rooms.jobs.acknowledge([key])
    assert len(rooms.table) == 0
    await rooms.settled(lambda: not claims(home))
    assert rooms.remains.end_of(key) == end
    assert (await rooms.jobs.query("job-1", 0, 0))["exit_code"] == 3
    assert await rooms.jobs.stop("job-1", None, 0, "TERM", 1.0, "stopped") == "failed"


async def test_the_same_start_again_is_the_same_start_also_after_its_end_and_after_its_acknowledgement(
    rooms: Rooms,
) -> None:
    script = ("sh", "-c", "echo x >> $0; exit 4", str(rooms.remains.directory(("counted", 0, 1)) / "marks"))
    key = await rooms.start("counted", "sleep", "0.05")
    await rooms.start("counted", *script)
    await rooms.end(key)
    await rooms.start("counted", *script)
    rooms.jobs.acknowledge([key])
    await rooms.settled(lambda: not rooms.remains.is_claimed(key))
    await rooms.start("counted", *script)
    assert (await rooms.end(key))["exit_code"] == 0  # told again, for whoever has not heard of it
    rooms.jobs.acknowledge([key])
    assert len(rooms.table) == 0


async def test_a_stopped_task_is_stopped_though_its_supervisor_has_to_kill_it(rooms: Rooms) -> None:
    key = await rooms.start("deaf", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    await rooms.until(key, "running")
    with OutputReader(rooms.remains.directory(key)) as reader:
        await rooms.settled(reader.size)
    assert await rooms.jobs.stop("deaf", None, 0, "TERM", 0.2, "task_failed") in (
        "running",
        "stopping",
        "stopped",
    )
    end = await rooms.end(key)
    assert (end["state"], end["reason"], end["signal"]) == ("stopped", "task_failed", "KILL")


async def test_an_attempt_stopped_before_it_is_here_is_never_started(home: Home, rooms: Rooms) -> None:
    assert await rooms.jobs.stop("early", 0, 2, "TERM", 1.0, "stopped") == "stopped"
    key = await rooms.start("early", "true", attempt=2)
    end = await rooms.end(key)
    assert (end["state"], end["reason"], end["started_at_us"]) == ("stopped", "stopped", 0)
    rooms.jobs.acknowledge([key])
    assert claims(home) == []


async def test_a_stop_of_a_job_that_nobody_knows_is_not_found(rooms: Rooms) -> None:
    for job_id in ("nobody", "", "../../etc", "a" * 300, "nul\0"):
        with pytest.raises(NotFound):
            await rooms.jobs.stop(job_id, None, 0, "TERM", 1.0, "stopped")
        with pytest.raises(NotFound):
            await rooms.jobs.query(job_id, 0, 0)


async def test_when_all_supervisors_are_full_another_is_made_and_empty_ones_go(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.2)
    home.start(tasks_per_supervisor=2)
    rooms = Rooms(home)
    await rooms.open()
    keys = await asyncio.gather(*(rooms.start(f"many-{n}", "sleep", "600") for n in range(5)))
    alone = os.geteuid() != 0  # a plain user's supervisors have one task each
    assert len(rooms.supervisors.names) == (5 if alone else 3)
    rooms.supervisors.stop_all("KILL", 0.0, "stopped")
    ends = [await rooms.end(key) for key in keys]
    assert {(e["state"], e["reason"]) for e in ends} == {("stopped", "stopped")}
    rooms.jobs.acknowledge(keys)
    await rooms.settled(lambda: len(rooms.supervisors.names) == 1)
    assert (await rooms.end(await rooms.start("after", "true")))["state"] == "succeeded"
    assert claims(home) == ["after.0.1"]
    await rooms.close()


async def test_a_dead_supervisors_tasks_end_supervisor_lost_with_all_their_output(
    home: Home, rooms: Rooms
) -> None:
    key = await rooms.start("orphan", "sh", "-c", "printf 12345; exec sleep 600")
    task = await rooms.until(key, "running")
    with OutputReader(rooms.remains.directory(key)) as reader:
        await rooms.settled(lambda: reader.size() == 5)
        ended = await rooms.end(await rooms.start("ended", "true"))
        os.kill(home.supervisor_pid("s1"), signal.SIGKILL)
        end = await rooms.end(key)
        assert (end["state"], end["reason"], end["exit_code"]) == ("failed", "supervisor_lost", None)
        assert end["output"]["merged"] == {"bytes": 5, "sha256": hashlib.sha256(b"12345").hexdigest()}
        assert reader.sealed() == end
    assert not lives(task["pid"])
    rooms.jobs.acknowledge([key, ("ended", 0, 1)])
    assert ended["state"] == "succeeded"
    await rooms.settled(lambda: claims(home) == [])
    await rooms.settled(lambda: not list((home.state / "ends").glob("*.s1.log")))
    assert (await rooms.end(await rooms.start("next", "true")))["state"] == "succeeded"


async def test_a_start_under_way_when_its_supervisor_dies_is_made_by_another_or_has_ended(
    home: Home, rooms: Rooms
) -> None:
    starts = [asyncio.create_task(rooms.start(f"raced-{n}", "true")) for n in range(20)]
    await asyncio.sleep(0)
    os.kill(home.supervisor_pid("s1"), signal.SIGKILL)
    keys = await asyncio.gather(*starts)
    ends = [await rooms.end(key) for key in keys]
    assert {(e["state"], e["reason"]) for e in ends} <= {
        ("succeeded", "exited"),
        ("failed", "supervisor_lost"),
    }


async def test_a_new_server_finds_running_tasks_and_unacknowledged_ends(home: Home, rooms: Rooms) -> None:
    running = await rooms.start("runs", "sh", "-c", "sleep 0.3; exit 5")
    ended = await rooms.end(await rooms.start("ended", "true"))
    await rooms.until(running, "running")
    await rooms.close()
    again = Rooms(home)
    await again.open()
    assert set(again.table) == {running, ("ended", 0, 1)}
    assert (await again.end(("ended", 0, 1))) == ended
    assert (await again.end(running))["exit_code"] == 5
    again.jobs.acknowledge(list(again.table))
    await again.settled(lambda: not claims(home))
    await again.close()


async def test_a_silent_supervisor_does_not_hold_the_others_up_and_its_tasks_are_not_missing(
    home: Home, rooms: Rooms
) -> None:
    key = await rooms.start("held", "sleep", "600")
    await rooms.until(key, "running")
    await rooms.close()
    os.kill(home.supervisor_pid("s1"), signal.SIGSTOP)
    again = Rooms(home)
    await again.open()
    entry = again.table.get(key)
    assert entry is not None
    assert (entry.task["state"], entry.holder) == ("starting", "s1")
    # A start goes to another one.
    assert (await again.end(await again.start("other", "true")))["state"] == "succeeded"
    os.kill(home.supervisor_pid("s1"), signal.SIGCONT)
    await again.until(key, "running")
    await again.close()


async def test_ends_and_claims_of_an_earlier_incarnation_are_told_once(home: Home, rooms: Rooms) -> None:
    running = await rooms.start("runs", "sleep", "600")
    await rooms.until(running, "running")
    await rooms.end(await rooms.start("ended", "sh", "-c", "exit 9"))
    await rooms.end(await rooms.start("heard", "true"))
    rooms.jobs.acknowledge([("heard", 0, 1)])
    await rooms.settled(lambda: len(claims(home)) == 2)
    await rooms.close()
    home.kill()
    home.start()
    again = Rooms(home)
    await again.open()
    assert set(again.table) == {running, ("ended", 0, 1)}
    lost = await again.end(running)
    assert (await again.end(("ended", 0, 1)))["exit_code"] == 9
    # Its supervisor saw its launcher die, and killed it: either it could still say so, or nobody can.
    assert (lost["state"], lost["reason"]) in {
        ("lost", "worker_lost"),
        ("failed", "signaled"),
        ("failed", "supervisor_lost"),
    }
    again.jobs.acknowledge(list(again.table))
    assert claims(home) == []
    assert list((home.state / "ends").iterdir()) == []
    await again.close()


async def test_what_cannot_be_started_is_refused_with_its_cause(rooms: Rooms) -> None:
    with pytest.raises(Invalid, match="network"):
        await rooms.start("bad", "true", network="moon")
    assert rooms.table.get(("bad", 0, 1)) is None
    rooms.epoch = 3
    with pytest.raises(StaleEpoch):
        await rooms.jobs.start({"job_id": "late", "task_rank": 0, "attempt": 1, "command_words": ["true"]}, 2)
    rooms.jobs.draining = True
    with pytest.raises(Draining):
        await rooms.start("more", "true")
    rooms.jobs.draining = False
    rooms.jobs._max_tasks = 0
    with pytest.raises(Unavailable):
        await rooms.start("more", "true")


async def test_big_starts_travel_whole(rooms: Rooms) -> None:
    text = os.urandom(900_000)
    key = await rooms.start("big", "sha256sum", stdin=base64.b64encode(text).decode())
    assert (await rooms.end(key))["state"] == "succeeded"
    with OutputReader(rooms.remains.directory(key)) as reader:
        assert reader.read(0, 64).decode() == hashlib.sha256(text).hexdigest()


async def test_without_a_launcher_a_server_does_not_begin(home: Home, rooms: Rooms) -> None:
    home.run_directory = home.directory
    with pytest.raises(OSError, match="No such file"):
        await Rooms(home).open()


async def test_usage_of_a_running_task_is_asked_of_its_supervisor(rooms: Rooms) -> None:
    key = await rooms.start("used", "sleep", "600")
    await rooms.until(key, "running")
    task = await rooms.jobs.query("used", 0, 0)
    assert set(task["usage"]) >= {"cpu_seconds", "memory_peak_bytes", "oom_kills"}


async def test_who_has_read_an_output_to_its_end_is_not_told_that_its_task_runs(
    home: Home, rooms: Rooms
) -> None:
    key = await rooms.start("sealed", "sleep", "600")
    await rooms.until(key, "running")
    # As between the seal and the supervisor's word of it: the table has not heard of the end.
    os.kill(home.supervisor_pid("s1"), signal.SIGSTOP)
    recover(rooms.remains.directory(key), {**new_task(key, "succeeded"), "reason": "exited"})
    entry = rooms.table.get(key)
    assert entry is not None
    assert not entry.ended
    assert (await rooms.jobs.query("sealed", 0, 0))["state"] == "succeeded"
    os.kill(home.supervisor_pid("s1"), signal.SIGKILL)
    assert (await rooms.end(key))["state"] == "succeeded"
