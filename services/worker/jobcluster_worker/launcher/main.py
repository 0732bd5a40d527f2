"""Sets the launcher's world up, in the order that it needs, or says in one line why it cannot. Stdlib only."""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import gc
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from jobcluster_worker.cgroup import tree as cgroups
from jobcluster_worker.cgroup.leaf import Enforcement as Enforced
from jobcluster_worker.launcher import claims, processes, uids
from jobcluster_worker.launcher.bootstrap import Bootstrap
from jobcluster_worker.launcher.launcher import Launcher
from jobcluster_worker.launcher.notes import configure, note
from jobcluster_worker.launcher.rundirectory import RunDirectory
from jobcluster_worker.launcher.shapes import Enforcement
from jobcluster_worker.launcher.start import Site
from jobcluster_worker.sandbox import confine

_FAULT = 2
_REQUIRED = ("cpu", "memory", "pids")


class CannotStart(Exception):
    """The worker cannot run here; the text says why, and the remedy."""


def main(arguments: Sequence[str]) -> int:
    """The exit code; one line on stderr where it is 2."""
    parser = argparse.ArgumentParser(prog="launcher")
    parser.add_argument("--bootstrap-fd", type=int, required=True)
    where = "jobcluster-worker"
    try:
        bootstrap = Bootstrap.from_fd(parser.parse_args(arguments).bootstrap_fd)
        where = bootstrap.settings_file or where
        configure(bootstrap.log_format, bootstrap.log_level)
        return _run(bootstrap)
    except (CannotStart, ValueError, OSError, uids.NoUids) as error:
        sys.stderr.write(f"{where}: {error}\n")
        return _FAULT


def _run(bootstrap: Bootstrap) -> int:
    os.umask(0o022)
    _prepare_directories(bootstrap)
    lock = _lock(bootstrap.state_directory)
    # Both may put this process into namespaces of its own: before any socket, thread or fork.
    tree, enforced = cgroups.setup(bootstrap.data_directory, bootstrap.limits_worker)
    confine.prepare_host()
    processes.become_subreaper()
    run_directory = None
    try:
        missing = _require(bootstrap, enforced)
        run_directory = _make_run_directory(lock)
        hidden = dataclasses.replace(bootstrap, hide=[*bootstrap.hide, run_directory.path])
        site = Site(hidden, tree, cast(dict[str, Enforcement], enforced))
        launcher = Launcher(site, run_directory, secrets.token_hex(8), _reserve_uids(), lock)
        _redirect(bootstrap.log_file)
        if missing:
            note("not_enforced", "warning", **missing)
        # What is there now is never collected, so that the supervisors go on sharing its pages.
        gc.freeze()
        return launcher.run()
    finally:
        if run_directory is not None:
            run_directory.remove()
        if tree is not None:
            tree.close()
        os.close(lock)


def _prepare_directories(bootstrap: Bootstrap) -> None:
    bootstrap.state_directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    (bootstrap.state_directory / "ends").mkdir(exist_ok=True, mode=0o700)
    claims.prepare_directories(bootstrap.data_directory)


def _lock(state_directory: Path) -> int:
    """:raises CannotStart: another worker runs with this state."""
    fd = os.open(state_directory / "launcher.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise CannotStart(
            f"worker.state_directory: {state_directory}: another worker runs with it; give each its own"
        ) from None
    return fd


def _make_run_directory(lock: int) -> RunDirectory:
    """The lock's file names it, so that the next launcher can remove what one that was killed has left."""
    RunDirectory.remove_left(os.fsdecode(os.pread(lock, 4096, 0)))
    made = RunDirectory.make(os.environ)
    # Written over, not anew: on a full disk the file's block is not given up.
    os.ftruncate(lock, os.pwrite(lock, os.fsencode(made.path), 0))
    return made


def _redirect(log_file: str) -> None:
    """From now on what launcher and supervisors say is in the worker's log. Until now it was for who started it.

    :raises CannotStart: it cannot be opened.
    """
    if not log_file:
        return
    try:
        log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CannotStart(
            f"jobs.log_file: {log_file} cannot be opened: {error.strerror}; name a file this user can write"
        ) from None
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _require(bootstrap: Bootstrap, enforced: Enforced) -> dict[str, str]:
    """What cannot be enforced, and why.

    :raises CannotStart: it must be.
    """
    missing = {name: state["why"] for name, state in enforced.items() if not state["ok"]}
    fatal = [name for name in _REQUIRED if name in missing]
    if bootstrap.limits_require and fatal:
        raise CannotStart(
            f"limits.require: {', '.join(fatal)} cannot be limited here: {missing[fatal[0]]}; or set"
            " limits.require = false (JOBCLUSTER_LIMITS__REQUIRE=false) to run jobs without these limits"
        )
    return missing


def _reserve_uids() -> uids.Block | None:
    """A plain user's tasks run as that user."""
    if os.geteuid() != 0:
        return None
    for first in (uids.FIRST_UID, uids.FIRST_UID_OF_SMALL_MAP):
        if uids.mapped(first, uids.BLOCK_UIDS):
            return uids.Block.reserve(first, processes.uids_in_use())
    raise CannotStart(
        "this user namespace maps too few uids for tasks to have their own; map 65536, or start the worker as a plain"
        " user"
    )
