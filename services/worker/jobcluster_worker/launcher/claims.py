"""Each attempt is claimed once, before anything of it is made; its directory outlives the claim as a tombstone.

A claim is a symbolic link whose target is the owner: made with its content in one system call, so that a crash
never leaves a claim that says nothing. Stdlib only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from jobcluster_worker.launcher.shapes import JOB_ID, TaskKey


class Claimed(Exception):
    """The attempt was started, stopped or cancelled here before."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who holds an attempt: the supervisor's name within the launcher's incarnation, and the task's uid (-1: none)."""

    key: TaskKey
    incarnation: str
    supervisor: str
    uid: int


def claim_path(data_directory: Path, key: TaskKey) -> Path:
    return data_directory / "claims" / "{}.{}.{}".format(*key)


def task_directory(data_directory: Path, key: TaskKey) -> Path:
    """Where an attempt's output, index and work directory are."""
    return data_directory / "jobs" / key[0] / f"{key[1]}.{key[2]}"


def prepare_directories(data_directory: Path) -> None:
    """Makes the directories of claims and jobs; jobs are to be passed through by tasks, not listed.

    :raises OSError: they cannot be made.
    """
    data_directory.mkdir(parents=True, exist_ok=True)
    (data_directory / "claims").mkdir(mode=0o700, exist_ok=True)
    (data_directory / "jobs").mkdir(mode=0o711, exist_ok=True)


def take(data_directory: Path, claim: Claim) -> Path:
    """Claims an attempt and makes its directory, both exclusively; gives the directory.

    :raises Claimed: it was taken before, or left a tombstone.
    :raises OSError: it cannot be written; nothing is left then.
    """
    path = claim_path(data_directory, claim.key)
    try:
        os.symlink(f"{claim.incarnation}/{claim.supervisor}/{claim.uid}", path)
    except FileExistsError:
        raise Claimed from None
    try:
        return _make(data_directory, claim.key)
    except BaseException:
        with contextlib.suppress(OSError):  # another attempt is there
            task_directory(data_directory, claim.key).parent.rmdir()
        os.unlink(path)
        raise


def release(data_directory: Path, key: TaskKey) -> None:
    """Removes the claim of an ended attempt; its directory stays. Again, it does nothing."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(claim_path(data_directory, key))


def give_up(data_directory: Path, key: TaskKey) -> None:
    """Takes a claim back, with what was made for it, by who has it: as if it had never been."""
    directory = task_directory(data_directory, key)
    shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(OSError):  # another attempt is there
        directory.parent.rmdir()
    release(data_directory, key)


def held(data_directory: Path) -> list[Claim]:
    """All claims; what is no claim is passed over."""
    claims = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(data_directory / "claims"):
            claim = _read(data_directory / "claims" / name)
            if claim is not None:
                claims.append(claim)
    return claims


def _make(data_directory: Path, key: TaskKey) -> Path:
    path = task_directory(data_directory, key)
    for _ in range(100):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path.parent, 0o711)
        try:
            os.mkdir(path, 0o711)
        except FileExistsError:
            raise Claimed from None
        except FileNotFoundError:
            # Retention removed the job's empty directory between the two calls.
            continue
        return path
    raise FileNotFoundError(f"{path.parent} vanishes as often as it is made")


def _read(path: Path) -> Claim | None:
    try:
        incarnation, supervisor, uid = os.readlink(path).split("/")
        job_id, rank, attempt = path.name.rsplit(".", 2)
        if not JOB_ID.fullmatch(job_id):
            return None
        return Claim((job_id, int(rank), int(attempt)), incarnation, supervisor, int(uid))
    except (OSError, ValueError):
        return None
