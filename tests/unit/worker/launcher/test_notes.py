from __future__ import annotations

import io
import json
import os
import sys

import pytest
from jobcluster_worker.launcher import notes
from jobcluster_worker.launcher.notes import note


def test_a_note_is_one_json_line(capfd: pytest.CaptureFixture[str]) -> None:
    note("server_ended", "warning", exit_code=1, reason="a\nb")
    (line,) = capfd.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["event"], told["level"], told["exit_code"]) == ("server_ended", "warning", 1)
    assert told["reason"] == "a\nb"


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


@pytest.mark.parametrize("text", ["x" * 100_000, "\u2028" * 100_000, "\\" * 100_000])
def test_a_line_that_a_pipe_could_not_take_at_once_has_shorter_texts_and_is_whole(
    capfd: pytest.CaptureFixture[str], text: str
) -> None:
    note("callback_failed", reason=text, exception=text, job_id="j")
    (line,) = capfd.readouterr().err.splitlines()
    assert len(line) < 4096
    told = json.loads(line)
    assert text.startswith(told["reason"]) and told["reason"]
    assert (told["event"], told["job_id"]) == ("callback_failed", "j")


def test_a_note_has_what_the_process_is(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "_ids", {"process": "launcher"})
    notes.identify(process="supervisor", supervisor="s1", worker_id="w")
    note("task_started", job_id="j", task_rank=0, attempt=1)
    told = json.loads(capfd.readouterr().err)
    assert (told["process"], told["supervisor"], told["worker_id"]) == ("supervisor", "s1", "w")
    assert (told["job_id"], told["task_rank"], told["attempt"]) == ("j", 0, 1)


def test_the_configured_form_and_level_hold(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_form", "_least"):
        monkeypatch.setattr(notes, name, getattr(notes, name))
    notes.configure("console", "warning")
    note("task_started", job_id="j")
    note("server_ended", "warning", exit_code=1, reason="two words\nand a line")
    (line,) = capfd.readouterr().err.splitlines()
    assert "[warning  ] server_ended " in line
    assert "exit_code=1" in line and "reason='two words\\nand a line'" in line


def test_an_unexpected_error_is_told_without_values_of_variables(capfd: pytest.CaptureFixture[str]) -> None:
    env = "can" + "ary"
    try:
        raise RuntimeError("broken" if env else "")
    except RuntimeError as error:
        notes.note_fault(error)
    told = capfd.readouterr().err
    assert "canary" not in told
    assert json.loads(told)["reason"] == "RuntimeError: broken"


def test_no_stderr_is_no_reason_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    note("server_ended")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    note("server_ended")
