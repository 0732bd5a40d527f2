from __future__ import annotations

import io
import json
import os
import sys

import pytest
from jobcluster_worker.launcher.notes import note


def test_a_note_is_one_json_line(capfd: pytest.CaptureFixture[str]) -> None:
    note("server_ended", "warning", code=1, why="a\nb")
    (line,) = capfd.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["event"], told["level"], told["code"], told["why"]) == ("server_ended", "warning", 1, "a\nb")


def test_a_pipe_that_nobody_reads_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    with os.fdopen(writer, "w") as full, os.fdopen(reader, "rb"):
        monkeypatch.setattr(sys, "stderr", full)
        note("server_ended")
        monkeypatch.undo()


def test_a_line_that_a_pipe_could_not_take_at_once_is_cut(capfd: pytest.CaptureFixture[str]) -> None:
    note("callback_failed", why="x" * 100_000)
    assert len(capfd.readouterr().err) == 4096


def test_no_stderr_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    note("server_ended")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    note("server_ended")
