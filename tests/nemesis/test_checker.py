"""The checker itself: a clean history passes, and each kind of broken promise is found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.nemesis.checker import Record, check
from tests.nemesis.witness import Line, Plan, stderr, stdout

START, END = Line("start", "j", 1, "77"), Line("end", "j", 1, "7")


def clean() -> Record:
    out, err = stdout(9), stderr(9)
    job: dict[str, Any] = {
        "state": "failed",
        "reason": "exited",
        "exit_code": 7,
        "signal": None,
        "error_text": None,
        "output": {"bytes": len(out + err), "sha256": hashlib.sha256(out + err).hexdigest()},
    }
    return Record(
        Plan("exit", 9, "7"), "j", ["queued", "running", "failed"], job, out, True, out, err, out + err
    )


def test_a_clean_history_passes() -> None:
    assert check([clean()], [START, END]) == []


def told(**changes: Any) -> Callable[[Record], None]:
    def change(record: Record) -> None:
        assert record.job is not None
        record.job.update(changes)

    return change


def shown(**changes: Any) -> Callable[[Record], None]:
    def change(record: Record) -> None:
        for name, value in changes.items():
            setattr(record, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (shown(job=None), "no end of it is known"),
        (shown(states=["running", "queued"]), "state queued after running"),
        (shown(states=["failed", "succeeded"]), "state succeeded after failed"),
        (told(exit_code=8), "ended with 7"),
        (told(state="succeeded"), "do not agree"),
        (told(reason="stopped", state="stopped"), "not planned"),
        (told(reason="worker_lost", state="lost"), "worker_lost"),
        (shown(stdout=stdout(8)), "stdout has"),
        (shown(stderr=b""), "stderr has"),
        (shown(followed=stdout(9) + b"out 9\n"), "the reader got"),
        (shown(follow_ended=False), "never told the end"),
        (told(output={"bytes": 1, "sha256": ""}), "bytes are told"),
    ],
)
def test_a_broken_promise_is_found(change: Callable[[Record], None], word: str) -> None:
    record = clean()
    change(record)
    assert any(word in fault for fault in check([record], [START, END]))


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ([START, START, END], "started 2 times"),
        ([START], "no process told of its end"),
        ([END], "no process told of its start"),
        ([START, END, Line("start", "other", 1, "78")], "never acknowledged"),
    ],
)
def test_what_the_witness_saw_must_be_told(lines: list[Line], word: str) -> None:
    assert any(word in fault for fault in check([clean()], lines))
