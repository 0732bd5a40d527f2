from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
import threading
from pathlib import Path

import pytest
from jobcluster_common.errors import Unavailable
from jobcluster_controller.domain.job import Task
from jobcluster_controller.domain.query import JobFilter
from jobcluster_controller.domain.states import State
from jobcluster_controller.store import StoreRefused, opening, statements
from jobcluster_controller.store.sqlite import SqliteStore

from tests.unit.controller.makers import job, spec


async def test_what_waits_is_committed_together(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "c.db")
    futures = [store.insert(job(f"j{number}")) for number in range(100)]
    assert not any(future.done() for future in futures)
    await asyncio.gather(*futures)
    assert store.commits < 20
    await store.close()


async def test_a_future_resolves_only_when_another_connection_sees_the_row(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "c.db")
    other = sqlite3.connect(tmp_path / "c.db")
    await store.insert(job("a"))
    assert other.execute("SELECT job_id FROM jobs").fetchall() == [("a",)]
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()
    await store.close()


async def test_the_event_loop_writes_nothing(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "c.db")
    threads: set[str] = set()
    store._writer._connection.set_trace_callback(lambda _: threads.add(threading.current_thread().name))
    store._reader.set_trace_callback(lambda _: threads.add(threading.current_thread().name))
    await store.insert(job("a"))
    await store.list_jobs(JobFilter())
    assert threads == {"store-writer", "store-reader_0"}
    await store.close()


async def test_a_running_that_its_end_overtakes_is_never_written(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "c.db", lazy_seconds=5.0)
    first = job("a")
    await store.insert(first)
    written: list[str] = []
    store._writer._connection.set_trace_callback(written.append)
    running = store.save(jobs=[first.with_task(Task(state=State.RUNNING))], lazy=True)
    await store.save(jobs=[first.with_task(Task(state=State.SUCCEEDED))])
    assert running.done()
    assert len([sql for sql in written if sql.startswith("UPDATE")]) == 1
    await store.close()


async def test_a_write_that_fails_does_not_take_its_neighbours_with_it(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "c.db")
    results = await asyncio.gather(
        store.insert(job("a")), store.insert(job("a")), store.insert(job("b")), return_exceptions=True
    )
    assert [type(result) for result in results] == [type(None), Unavailable, type(None)]
    assert {j.job_id for j in await store.active_jobs()} == {"a", "b"}
    await store.close()


async def test_a_full_disk_is_said_nothing_is_acknowledged_and_it_goes_on_afterwards(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "c.db")
    writing = store._writer._connection
    pages = writing.execute("PRAGMA page_count").fetchone()[0]
    writing.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(Unavailable, match="full"):
        await store.insert(job("big", spec=spec(files={"f": b"x" * 100_000})))
    assert await store.job("big") is None
    assert (await store.list_jobs(JobFilter())) == ([], None)
    writing.execute(f"PRAGMA max_page_count = {1 << 30}")
    await store.insert(job("big"))
    assert await store.job("big") is not None
    await store.close()


_INSERTER = """
import asyncio, sys
from pathlib import Path
from jobcluster_controller.store.sqlite import SqliteStore
from tests.unit.controller.makers import job
async def main():
    store = await SqliteStore.open(Path(sys.argv[1]))
    for number in range(100000):
        await store.insert(job(f"j{number}"))
        print("kept", number, flush=True)
asyncio.run(main())
"""


async def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _INSERTER,
        str(tmp_path / "c.db"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert process.stdout is not None
    acknowledged = -1
    async for line in process.stdout:
        if line.startswith(b"kept "):
            acknowledged = int(line.split()[1])
        if acknowledged == 20:
            process.send_signal(signal.SIGKILL)
    await process.wait()
    store = await SqliteStore.open(tmp_path / "c.db")
    there = {j.job_id for j in await store.active_jobs()}
    assert acknowledged >= 20
    assert there >= {f"j{number}" for number in range(acknowledged + 1)}
    await store.close()


async def test_a_second_controller_on_the_same_store_is_refused(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "c.db")
    with pytest.raises(StoreRefused, match="another controller"):
        await SqliteStore.open(tmp_path / "c.db")
    await store.close()
    again = await SqliteStore.open(tmp_path / "c.db")
    await again.close()


async def _filled(path: Path) -> None:
    store = await SqliteStore.open(path)
    for _ in range(200):
        store.insert(job(spec=spec(env={"A": "x" * 500})))
    await store.save()
    await store.close()


def _overwrite(path: Path, offset: int, data: bytes, suffix: str = "") -> None:
    damaged = Path(f"{path}{suffix}")
    damaged.touch()
    with damaged.open("r+b") as file:
        file.seek(offset)
        file.write(data)


async def test_a_damaged_store_is_refused_in_one_line_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await _filled(path)
    _overwrite(path, 2 * 4096, b"\xde\xad" * 2048)
    with pytest.raises(StoreRefused) as refused:
        await SqliteStore.open(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


async def test_a_store_with_a_damaged_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await _filled(path)
    _overwrite(path, 0, b"\x00" * 4096)
    with pytest.raises(StoreRefused, match=r"c\.db"):
        await SqliteStore.open(path)


async def test_an_emptied_store_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    await _filled(path)
    path.write_bytes(b"")
    with pytest.raises(StoreRefused, match="empty"):
        await SqliteStore.open(path)


async def test_a_store_whose_file_is_gone_but_not_its_log_is_not_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    _overwrite(path, 0, b"x", suffix="-wal")
    with pytest.raises(StoreRefused, match=r"c\.db-wal"):
        await SqliteStore.open(path)


async def test_another_programs_database_and_a_newer_one_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(StoreRefused, match="not a store of jobcluster"):
        await SqliteStore.open(path)
    newer = tmp_path / "newer.db"
    await (await SqliteStore.open(newer)).close()
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 9999")
    connection.close()
    with pytest.raises(StoreRefused, match="newer jobcluster"):
        await SqliteStore.open(newer)


async def test_a_path_that_cannot_be_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreRefused, match="file"):
        await SqliteStore.open(tmp_path / "file" / "c.db")
    with pytest.raises(StoreRefused):
        await SqliteStore.open(tmp_path)


async def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "state" / "c.db")
    await store.insert(job())
    await store.close()
    assert (tmp_path / "state" / "c.db").stat().st_mode & 0o077 == 0


async def test_a_page_of_jobs_that_carry_much_is_short_and_none_is_left_out(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "c.db")
    heavy = spec(document={"command": "true", "stdin": "x" * (3 << 20)})
    for number in range(5):
        await store.insert(job(f"j{number}", spec=heavy))
    pages: list[list[str]] = []
    cursor: str | None = None
    while not pages or cursor is not None:
        jobs, cursor = await store.list_jobs(JobFilter(limit=100, cursor=cursor))
        pages.append([j.job_id for j in jobs])
    assert pages == [["j4", "j3"], ["j2", "j1"], ["j0"]]
    await store.close()


async def test_lists_use_an_index_and_never_sort(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "c.db")
    names = "state worker_id name array_id labels label_key label_value cursor limit"
    parameters = dict.fromkeys(names.split())
    for name, sql in store._sql.items():
        if name.startswith("list_"):
            plan = store._reader.execute(f"EXPLAIN QUERY PLAN {sql}", parameters).fetchall()
            steps = [str(row[3]) for row in plan]
            assert not any("TEMP B-TREE" in step for step in steps), (name, steps)
            assert not any(step.startswith("SCAN") and "wanted" not in step for step in steps), (name, steps)
    await store.close()


async def test_a_job_of_an_older_store_is_listed_by_the_worker_that_it_waits_for(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "c.db")
    held = job("held", spec=spec(worker_id="w1"), task=Task(state=State.RUNNING, worker_id="w1"))
    await asyncio.gather(*map(store.insert, (job("waits", spec=spec(worker_id="w1")), job("anywhere"), held)))
    await store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "c.db")) as older:
        older.execute("UPDATE jobs SET worker_id = NULL WHERE state = 'queued'")
        older.execute("PRAGMA user_version = 1")
        older.commit()
    store = await SqliteStore.open(tmp_path / "c.db")
    jobs, _ = await store.list_jobs(JobFilter(worker_id="w1"))
    assert [j.job_id for j in jobs] == ["held", "waits"]
    assert len((await store.list_jobs(JobFilter()))[0]) == 3
    await store.close()


def test_migrations_are_numbered_without_a_gap() -> None:
    assert len(opening.migrations()) >= 1


def test_statements_have_names_and_each_only_once(tmp_path: Path) -> None:
    file = tmp_path / "q.sql"
    file.write_text("-- a word before\n\n-- :name one\nSELECT 1\n-- why\nFROM t\n\n-- :name two\nSELECT 2\n")
    assert statements.load(file) == {"one": "SELECT 1\nFROM t", "two": "SELECT 2"}
    file.write_text("SELECT 1\n")
    with pytest.raises(ValueError, match="without a name"):
        statements.load(file)
    file.write_text("-- :name one\nSELECT 1\n-- :name one\nSELECT 2\n")
    with pytest.raises(ValueError, match="twice"):
        statements.load(file)
