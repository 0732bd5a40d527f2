"""The store on SQLite: one writer thread with grouped commits, one reader thread, WAL, synchronous=FULL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import structlog
from jobcluster_common.errors import Unavailable

from ..domain.job import Job
from ..domain.query import JobFilter
from ..domain.worker import Worker
from . import codec, cursor, opening, statements
from .protocol import IdempotencyKey, Repeat, StoreRefused
from .writer import LAZY_SECONDS, Write, Writer, key_parameters

log = structlog.get_logger()
T = TypeVar("T")
_QUERIES = Path(__file__).with_name("queries.sql")

# A job may have 2 MiB of files and stdin in its spec: of such ones a page has fewer than were asked for.
PAGE_BYTES_MAX = 8 << 20


class SqliteStore:
    """A Store in one file. Neither opening nor anything else of it does file IO on the event loop."""

    def __init__(
        self, lock: int, writer: Writer, reader: sqlite3.Connection, sql: dict[str, str], path: Path
    ) -> None:
        self._lock = lock
        self._writer = writer
        self._reader = reader
        self._sql = sql
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="store-reader")

    @classmethod
    async def open(cls, path: Path, lazy_seconds: float = LAZY_SECONDS) -> Self:
        """Opens the file, or makes it where there is none.

        :raises StoreRefused: if it is damaged, unreadable, in use, not ours or of a newer version.
        """
        loop = asyncio.get_running_loop()
        lock, connection, reader, sql = await asyncio.to_thread(_open, path)
        return cls(lock, Writer(connection, sql, loop, lazy_seconds), reader, sql, path)

    @property
    def commits(self) -> int:
        """How many transactions were committed."""
        return self._writer.commits

    def insert(self, job: Job, key: IdempotencyKey | None = None) -> asyncio.Future[Repeat | None]:
        future: asyncio.Future[Repeat | None] = self._loop.create_future()
        self._writer.submit(Write(future, new=job, key=key))
        return future

    def save(
        self, jobs: Sequence[Job] = (), workers: Sequence[Worker] = (), lazy: bool = False
    ) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        self._writer.submit(Write(future, jobs=jobs, workers=workers, lazy=lazy))
        return future

    def forget(self, keys_before: datetime, worker_ids: Sequence[str] = ()) -> asyncio.Future[None]:
        def run(connection: sqlite3.Connection) -> None:
            connection.execute(self._sql["delete_keys"], {"before_us": codec.to_us(keys_before)})
            rows = [{"worker_id": worker_id} for worker_id in worker_ids]
            connection.executemany(self._sql["delete_worker"], rows)

        future: asyncio.Future[None] = self._loop.create_future()
        self._writer.submit(Write(future, run=run))
        return future

    async def check(self) -> None:
        """Whether writes are committed; where the last one was not, by one that changes nothing.

        :raises Unavailable: they are not.
        """
        if self._writer.failed:
            future: asyncio.Future[None] = self._loop.create_future()
            self._writer.submit(Write(future, run=opening.touch))
            await future

    async def job(self, job_id: str) -> Job | None:
        rows = await self._read(lambda: self._jobs("get_job", {"job_id": job_id}))
        return rows[0][1] if rows else None

    async def repeat(self, key: IdempotencyKey) -> Repeat | None:
        row = await self._read(lambda: self._rows("find_key", key_parameters(key)))
        return Repeat(*row[0]) if row else None

    async def list_jobs(self, which: JobFilter) -> tuple[list[Job], str | None]:
        name, parameters = _list_statement(which)
        shown, more = await self._read(lambda: self._page(name, parameters, which.limit))
        return [job for _, job in shown], cursor.encode(shown[-1][0]) if more else None

    async def active_jobs(self) -> list[Job]:
        rows = await self._read(lambda: self._jobs("active_jobs", {}))
        return [job for _, job in rows]

    async def workers(self) -> list[Worker]:
        return await self._read(lambda: [codec.worker_from(*row) for row in self._rows("workers", {})])

    async def close(self) -> None:
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._threads.shutdown()
        self._reader.close()
        self._writer.close()
        os.close(self._lock)

    async def _read(self, run: Callable[[], T]) -> T:
        try:
            return await self._loop.run_in_executor(self._threads, run)
        except sqlite3.Error as error:
            log.error("store_read_failed", exc_info=error)
            raise Unavailable(f"the store could not be read: {error}", retry_after=5.0) from error

    def _rows(self, name: str, parameters: dict[str, Any]) -> list[Any]:
        return self._reader.execute(self._sql[name], parameters).fetchall()

    def _page(self, name: str, parameters: dict[str, Any], limit: int) -> tuple[list[tuple[int, Job]], bool]:
        """As many jobs as are asked for and as fit into a page, and whether there are more."""
        shown: list[tuple[int, Job]] = []
        size = 0
        with contextlib.closing(self._reader.execute(self._sql[name], parameters)) as rows:
            for number, job_id, status, spec in rows:
                size += len(status) + len(spec)
                if len(shown) == limit or (shown and size > PAGE_BYTES_MAX):
                    return shown, True
                shown.append((number, codec.job(job_id, status, spec)))
        return shown, False

    def _jobs(self, name: str, parameters: dict[str, Any]) -> list[tuple[int, Job]]:
        rows = self._rows(name, parameters)
        return [(number, codec.job(job_id, status, spec)) for number, job_id, status, spec in rows]


def _open(path: Path) -> tuple[int, sqlite3.Connection, sqlite3.Connection, dict[str, str]]:
    sql = statements.load(_QUERIES)
    lock = opening.lock(path)
    try:
        fresh = not path.exists()
        connection = opening.open_writer(path)
        try:
            reader = opening.open_reader(path)
        except StoreRefused:
            connection.close()
            raise
    except BaseException:
        os.close(lock)
        raise
    log.info("store_created" if fresh else "store_opened", file=str(path))
    return lock, connection, reader, sql


def _list_statement(which: JobFilter) -> tuple[str, dict[str, Any]]:
    """The statement led by the filter that is likely to leave the fewest jobs, and its parameters."""
    label = next(iter(which.labels.items()), None)
    active = which.state is not None and not which.state.done
    leads = (
        ("list_by_array", which.array_id is not None),
        ("list_by_name", which.name is not None),
        ("list_by_state", active),
        ("list_by_label", label is not None),
        ("list_by_worker", which.worker_id is not None),
        ("list_by_state", which.state is not None),
    )
    name = next((statement for statement, given in leads if given), "list_all")
    parameters = {
        "state": which.state.value if which.state else None,
        "worker_id": which.worker_id,
        "name": which.name,
        "array_id": which.array_id,
        "labels": codec.labels(which.labels),
        "label_key": label[0] if label else None,
        "label_value": label[1] if label else None,
        "cursor": cursor.decode(which.cursor),
        "limit": which.limit + 1,
    }
    return name, parameters
