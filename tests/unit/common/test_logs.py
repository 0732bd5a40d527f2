import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from jobcluster_common import logs
from jobcluster_common.logs import LogFile, configure
from jobcluster_common.settings import LogBlock

from tests.unit.worker.full_disk import files_of_at_most


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    yield tmp_path / "worker.log"
    for handler in logging.getLogger().handlers:
        if handler not in handlers and isinstance(handler, logging.StreamHandler):
            handler.stream.close()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)
    structlog.reset_defaults()


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in file.read_text().splitlines()]


def test_an_event_is_one_json_line_with_its_ids(file: Path) -> None:
    configure(LogBlock(), file.open("a", buffering=1))
    with structlog.contextvars.bound_contextvars(job_id="j"):
        structlog.get_logger().info("job_started", task_rank=0)
    structlog.get_logger().debug("job_output")
    (line,) = lines_of(file)
    assert (line["event"], line["level"], line["job_id"], line["task_rank"]) == (
        "job_started",
        "info",
        "j",
        0,
    )
    assert line["timestamp"].endswith("Z")


def log_a_fault_beside_a_token() -> str:
    """By an event of ours and by a library's; the token is a local variable where it is raised."""
    token = "a-very-" + "secret-token"
    try:
        raise RuntimeError("broken" if token else "")
    except RuntimeError:
        structlog.get_logger().exception("rpc_failed")
        logging.getLogger("uvicorn").exception("lost")
    return token


def test_what_libraries_log_and_a_traceback_are_one_line_too(file: Path) -> None:
    configure(LogBlock(), file.open("a", buffering=1))
    token = log_a_fault_beside_a_token()
    logging.getLogger("uvicorn").info("one per connection: not wanted")
    assert token not in file.read_text()
    lines = lines_of(file)
    assert [line["event"] for line in lines] == ["rpc_failed", "lost"]
    assert lines[0]["exception"][0]["exc_value"] == "broken"
    assert lines[1]["logger"] == "uvicorn"


def test_a_traceback_for_people_has_no_values_of_variables(file: Path) -> None:
    configure(LogBlock(format="console"), file.open("a", buffering=1))
    token = log_a_fault_beside_a_token()
    text = file.read_text()
    assert token not in text
    assert text.count("RuntimeError: broken") == 2 and text.count("Traceback (most recent call last)") == 2


async def test_what_outlives_a_request_does_not_carry_its_ids(file: Path) -> None:
    configure(LogBlock(), file.open("a", buffering=1))

    async def tell() -> None:
        structlog.get_logger().info("task_lost")

    logs.bind(request_id="r", job_id="j")
    await asyncio.create_task(tell())
    await asyncio.get_running_loop().create_task(tell(), context=logs.own_context())
    inside, outside = lines_of(file)
    assert (inside["request_id"], inside["job_id"]) == ("r", "j")
    assert "request_id" not in outside and "job_id" not in outside
    assert logs.bound("request_id") == "r"


def test_each_event_says_what_the_process_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_process", {})
    configure(LogBlock(), file.open("a", buffering=1))
    logs.identify(process="server", worker_id="w")
    structlog.get_logger().info("server_listening")
    structlog.get_logger().info("worker_lost", worker_id="another")
    logging.getLogger("uvicorn").warning("odd")
    lines = lines_of(file)
    assert [line["worker_id"] for line in lines] == ["w", "another", "w"]
    assert {line["process"] for line in lines} == {"server"}


PROGRAM = """
import os, sys
from jobcluster_common import logs
from jobcluster_common.settings import LogBlock
try:
    with logs.process(LogBlock(), process="server"):
        os.write(2, b"E0000 of C, with \\xff\\n\\nhalf a line")
        logs.log.warning("rpc_refused")
        sys.stderr.write(" and its end")
        raise SystemExit("one line with the remedy")
finally:
    print("left", file=sys.stderr)
"""


def test_what_c_code_writes_to_stderr_are_lines_of_the_log_until_the_process_ends() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    *log, left, last = done.stderr.splitlines()
    events = [json.loads(line) for line in log]
    assert [e["event"] for e in events if e.get("logger") == "stderr"] == [
        "E0000 of C, with \ufffd",
        "half a line and its end",
    ]
    assert [e["event"] for e in events if "logger" not in e] == ["rpc_refused"]
    assert {e["process"] for e in events} == {"server"}
    assert (left, last) == ("left", "one line with the remedy")


def test_a_callers_request_id_is_taken_only_when_it_is_a_plain_word() -> None:
    assert logs.request_id("order-17.a") == "order-17.a"
    made = [logs.request_id(given) for given in ("", None, "two words", "x" * 129, 'a"b', "a\nb")]
    assert len(set(made)) == len(made) and not set(made) & {"", "two words"}


async def test_a_fault_that_nobody_waits_for_is_an_event_without_the_callbacks_arguments(file: Path) -> None:
    configure(LogBlock(), file.open("a", buffering=1))
    loop = asyncio.get_running_loop()
    token, done = "a-very-" + "secret-token", asyncio.Event()

    def callback(_argument: str) -> None:
        done.set()
        raise RuntimeError("broken")

    before = sys.excepthook
    try:
        logs.tell_of_faults(loop)
        loop.call_soon(callback, token)
        await done.wait()
        await asyncio.sleep(0)
    finally:
        loop.set_exception_handler(None)
        sys.excepthook = before
    (line,) = lines_of(file)
    assert token not in str(line)
    assert (line["event"], line["exception"][0]["exc_value"]) == ("loop_fault", "broken")


def test_a_log_is_appended_to_and_can_be_for_people(file: Path) -> None:
    file.write_text("before\n")
    configure(LogBlock(format="console", level="debug"), file.open("a", buffering=1))
    structlog.get_logger().debug("job_started", job_id="j")
    text = file.read_text()
    assert text.startswith("before\n")
    assert "job_started" in text and "job_id=j" in text


def test_a_log_on_a_full_disk_fails_nobody_and_its_next_line_is_whole(file: Path) -> None:
    configure(LogBlock(), LogFile(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)))
    log = structlog.get_logger()
    log.info("job_started", job_id="first")
    with files_of_at_most(file.stat().st_size + 10):
        log.info("job_started", job_id="torn")
        log.info("job_started", job_id="lost")
        logging.getLogger("library").warning("lost too")
    log.info("job_started", job_id="last")
    whole, torn, last = file.read_text().splitlines()
    assert (json.loads(whole)["job_id"], len(torn), json.loads(last)["job_id"]) == ("first", 10, "last")
