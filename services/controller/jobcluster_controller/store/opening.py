"""Opens the database file: makes it, checks it, brings its schema up to date. Or says in one line why not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from .protocol import StoreRefused

MIGRATIONS = Path(__file__).parent / "migrations"
_APPLICATION_ID = 0x4A434C53  # "JCLS", in the file's header: another program's database is not ours to change
_NO_ROOM = frozenset({"SQLITE_FULL", "SQLITE_IOERR_SHMSIZE"})
_MIGRATION = re.compile(r"(\d{4})_\w+\.sql")


def lock(path: Path) -> int:
    """The descriptor of a lock that one process at a time can hold; it goes with the process.

    :raises StoreRefused: if another process holds it, or the folder cannot be written.
    """
    with _refused(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StoreRefused(f"{path}: another controller uses this store; stop it first") from None
    return descriptor


def open_writer(path: Path) -> sqlite3.Connection:
    """The writing connection, its schema up to date. The lock must be held.

    :raises StoreRefused: if the file is damaged, unreadable, not ours or of a newer version.
    """
    with _refused(path):
        if not path.exists():
            _create(path)
        # sqlite would take an empty file for a new database, and the jobs in it would be silently gone.
        if path.stat().st_size == 0:
            raise StoreRefused(f"{path}: damaged: the file is empty; restore it, or remove it to start anew")
        connection = _connect(path)
        try:
            _check(path, connection)
            _migrate(path, connection)
        except BaseException:
            connection.close()
            raise
        return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write; in WAL mode it waits for no writer and none waits for it.

    :raises StoreRefused: if it cannot be opened.
    """
    with _refused(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA query_only = ON")
        return connection


@contextlib.contextmanager
def _refused(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorname", "") in _NO_ROOM:
            raise StoreRefused(
                f"{path}: the store cannot be opened: no room on its disk; make some"
            ) from error
        raise StoreRefused(f"{path}: the store cannot be read: {error}; restore it from a backup") from error
    except OSError as error:
        reason = error.strerror or error
        raise StoreRefused(
            f"{error.filename or path} cannot be used: {reason}; name a file this user can write"
        ) from error


def _create(path: Path) -> None:
    """Makes the file under another name first: a crash half-way leaves none that looks like ours and is empty."""
    remains = Path(f"{path}-wal")
    if remains.exists():
        raise StoreRefused(
            f"{path}: gone, but {remains.name} is there; restore it, or remove both to start anew"
        )
    fresh = Path(f"{path}.new")
    for leftover in (fresh, Path(f"{fresh}-wal"), Path(f"{fresh}-shm"), Path(f"{fresh}-journal")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    connection = sqlite3.connect(fresh, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        _migrate(path, connection)
    finally:
        connection.close()
    os.rename(fresh, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _connect(path: Path) -> sqlite3.Connection:
    # The writer thread uses it, not the one that opens it.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        connection.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        connection.close()
        raise
    return connection


def touch(connection: sqlite3.Connection) -> None:
    """Writes a page as it is."""
    connection.execute(f"PRAGMA user_version = {_pragma(connection, 'user_version')}")


def _check(path: Path, connection: sqlite3.Connection) -> None:
    if _pragma(connection, "application_id") != _APPLICATION_ID:
        raise StoreRefused(f"{path}: not a store of jobcluster; check [store] path")
    fault = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if fault != "ok":
        first_line = str(fault).strip().splitlines()[-1]
        raise StoreRefused(f"{path}: the store is damaged: {first_line}; restore it from a backup")


def _migrate(path: Path, connection: sqlite3.Connection) -> None:
    steps = migrations()
    version = _pragma(connection, "user_version")
    if version > len(steps):
        raise StoreRefused(
            f"{path}: made by a newer jobcluster (schema {version}, this one knows {len(steps)}); use that one"
        )
    for number, script in list(enumerate(steps, start=1))[version:]:
        # The script and its number in one transaction: after a crash a step was taken wholly or not at all.
        connection.executescript(f"BEGIN;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")


def migrations() -> list[str]:
    """The scripts in their order.

    :raises ValueError: if a number is missing or comes twice.
    """
    files = sorted(file for file in MIGRATIONS.iterdir() if _MIGRATION.fullmatch(file.name))
    numbers = [int(file.name[:4]) for file in files]
    if numbers != list(range(1, len(files) + 1)):
        raise ValueError(f"{MIGRATIONS}: the numbers must be 1, 2, 3 …, not {numbers}")
    return [file.read_text(encoding="utf-8") for file in files]


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])
