import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from jobcluster_common.logs import configure
from jobcluster_common.settings import LogBlock


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


def test_an_event_is_one_json_line_with_its_ids(file: Path) -> None:
    configure(LogBlock(), file)
    with structlog.contextvars.bound_contextvars(job_id="j"):
        structlog.get_logger().info("job_started", task_rank=0)
    structlog.get_logger().debug("job_output")
    (line,) = [json.loads(text) for text in file.read_text().splitlines()]
    assert (line["event"], line["level"], line["job_id"], line["task_rank"]) == (
        "job_started",
        "info",
        "j",
        0,
    )
    assert line["timestamp"].endswith("Z")


def test_what_libraries_log_and_a_traceback_are_one_line_too(file: Path) -> None:
    configure(LogBlock(), file)
    token = "a-very-" + "secret-token"
    try:
        raise RuntimeError("broken" if token else "")
    except RuntimeError:
        structlog.get_logger().exception("rpc_failed")
        logging.getLogger("uvicorn").exception("lost")
    logging.getLogger("uvicorn").info("one per connection: not wanted")
    assert token not in file.read_text()
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["rpc_failed", "lost"]
    assert lines[0]["exception"][0]["exc_value"] == "broken"
    assert lines[1]["logger"] == "uvicorn"


def test_a_log_is_appended_to_and_can_be_for_people(file: Path) -> None:
    file.write_text("before\n")
    configure(LogBlock(format="console", level="debug"), file)
    structlog.get_logger().debug("job_started", job_id="j")
    text = file.read_text()
    assert text.startswith("before\n")
    assert "job_started" in text and "job_id=j" in text
