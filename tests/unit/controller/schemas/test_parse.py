"""A posted job spec: what it becomes, and every fault of it by its pointer."""

from __future__ import annotations

from typing import Any

import pytest
from jobcluster_common.errors import BadRequest, Invalid
from jobcluster_controller.domain.job import IoLimits, Limits, OutputOptions
from jobcluster_controller.schemas.parse import parse_job_spec, pointer, read_json
from jobcluster_controller.schemas.spec import NOT_YET, JobSpecBody


def faults(document: Any, worker_id: str | None = None) -> dict[str, str]:
    with pytest.raises(Invalid) as found:
        parse_job_spec(document, worker_id)
    return {fault.pointer: fault.detail for fault in found.value.faults}


def test_the_seeds_body_works_as_it_stands() -> None:
    spec = parse_job_spec({"worker_id": "w1", "path": "worker/scripts/run.sh", "command": "bash"})
    assert (spec.worker_id, spec.path, spec.command) == ("w1", "worker/scripts/run.sh", ("bash",))


def test_a_command_is_split_into_words_and_never_run_by_a_shell() -> None:
    assert parse_job_spec({"command": """sh -c 'echo "$HOME"; ls' a\\ b ''"""}).command == (
        "sh",
        "-c",
        'echo "$HOME"; ls',
        "a b",
        "",
    )
    assert parse_job_spec({"command": ["a b", "$(x)", ""]}).command == ("a b", "$(x)", "")


def test_contents_are_text_or_base64() -> None:
    spec = parse_job_spec(
        {"path": "a/b.py", "files": {"a/b.py": "é", "bin": {"base64": "AP8="}}, "stdin": {"base64": ""}}
    )
    assert spec.files == {"a/b.py": b"\xc3\xa9", "bin": b"\x00\xff"} and spec.stdin == b""


def test_the_document_is_as_posted_with_its_defaults_filled() -> None:
    document = parse_job_spec(
        {"command": "a  b", "output": {"max_bytes": "1MiB"}, "args": None}, "w1"
    ).document
    assert document.keys() == JobSpecBody.model_fields.keys()
    assert (document["command"], document["args"], document["worker_id"]) == ("a  b", [], "w1")
    assert document["output"] == {"max_bytes": "1MiB", "on_limit": "truncate", "separate": True}
    assert document["limits"]["io"]["read_bps"] is None and document["limits"]["oom"] == "group"
    again = parse_job_spec(document)
    assert again.document == document and again.output == OutputOptions(max_bytes=1 << 20)


@pytest.mark.parametrize(
    ("size", "in_bytes"),
    [
        (1, 1),
        ("1", 1),
        ("1K", 1024),
        ("1KiB", 1024),
        ("0.5G", 1 << 29),
        ("1.5 MiB", 3 << 19),
        ("2tb", 2 << 40),
        ("1024M", 1 << 30),
        ("2048MiB", 2 << 30),
        ("1048576K", 1 << 30),
        ("0.05G", int(0.05 * (1 << 30))),
        ("1000 B", 1000),
    ],
)
def test_sizes(size: int | str, in_bytes: int) -> None:
    assert parse_job_spec({"command": "x", "output": {"max_bytes": size}}).output.max_bytes == in_bytes


@pytest.mark.parametrize(
    "size",
    [
        0,
        -1,
        1.5,
        True,
        None,
        "",
        "0",
        "-1",
        "1.5",
        "1 X",
        "inf",
        "١",
        "9" * 400,
        "9000T",
        "0.0001K",
        "0M",
        [],
        {},
    ],
)
def test_what_is_no_size(size: Any) -> None:
    if size is None:  # as if it were left out
        assert parse_job_spec({"command": "x", "output": None}).output == OutputOptions()
    else:
        assert list(faults({"command": "x", "output": {"max_bytes": size}})) == ["/output/max_bytes"]


@pytest.mark.parametrize(
    ("document", "pointers"),
    [
        ([], {""}),
        (None, {""}),
        ({}, {"/command"}),
        ({"command": None, "path": None}, {"/command"}),
        ({"command": ""}, {"/command"}),
        ({"command": "  \t"}, {"/command"}),
        ({"command": "''"}, {"/command"}),
        ({"command": []}, {"/command"}),
        ({"command": [""]}, {"/command"}),
        ({"command": ["a", 1]}, {"/command"}),
        ({"command": "a 'b"}, {"/command"}),
        ({"command": "a\\"}, {"/command"}),
        ({"command": "a\0b"}, {"/command"}),
        ({"command": ["a", "b\0"]}, {"/command"}),
        ({"command": 1}, {"/command"}),
        ({"path": ""}, {"/path"}),
        ({"path": ".."}, {"/path"}),
        ({"path": "../x"}, {"/path"}),
        ({"path": "a/../x"}, {"/path"}),
        ({"path": "/a/.."}, {"/path"}),
        ({"path": "a\n/../b"}, {"/path"}),
        ({"path": "a\0b"}, {"/path"}),
        ({"path": "a" * 5000}, {"/path"}),
        ({"command": "x", "cwd": "../up"}, {"/cwd"}),
        ({"command": "x", "args": "one"}, {"/args"}),
        ({"command": "x", "args": ["a", 1, "b\0"]}, {"/args/1", "/args/2"}),
        ({"command": "x", "env": {"A": 1, "": "x", "B=C": "x", "D": "\0"}}, {"/env/A", "/env/", "/env/B=C", "/env/D"}),
        ({"command": "x", "files": {"a/~b": 1, "/abs": "", "a//b": "", "..": ""}},
         {"/files/a~1~0b", "/files/~1abs", "/files/a~1~1b", "/files/.."}),
        ({"command": "x", "files": {"a": "", "a/b": ""}}, {"/files/a~1b"}),
        ({"command": "x", "stdin": {"base64": "!"}}, {"/stdin"}),
        ({"command": "x", "timeout_seconds": 0}, {"/timeout_seconds"}),
        ({"command": "x", "timeout_seconds": "1"}, {"/timeout_seconds"}),
        ({"command": "x", "labels": {"a": 1}, "name": "a\nb"}, {"/labels/a", "/name"}),
        ({"command": "x", "output": {"on_limit": "kill", "more": 1}}, {"/output/on_limit", "/output/more"}),
        ({"command": "x", "worker_id": 1}, {"/worker_id"}),
        ({"command": "x", "args": ["y" * (1 << 20)]}, {"/args"}),
        ({"command": "x", "args": ["y" * 66_000], "env": {"A": "z" * 67_000}}, {"/env"}),
        ({"command": "x", "files": {"a": "y" * 600_000, "b": "y" * 600_000}}, {"/files"}),
        ({"command": "x", "stdin": "y" * ((1 << 20) + 1)}, {"/stdin"}),
        ({"colour": 1, "command": "x", "args": ["y" * 140_000], "stdin": "y" * ((1 << 20) + 1), "name": 1},
         {"/colour", "/args", "/stdin", "/name"}),
        ({"colour": 1, "command": "", "tasks": 2, "path": "../x"}, {"/colour", "/command", "/tasks", "/path"}),
    ],
)  # fmt: skip
def test_every_fault_is_named(document: Any, pointers: set[str]) -> None:
    assert faults(document).keys() == pointers


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("path", "", "is empty"),
        ("path", "a/../b", ".."),
        ("path", "a\0", "NUL"),
        ("path", 1, "must be a string"),
        ("args", "x", "must be a list"),
        ("timeout_seconds", "5", "must be a number"),
        ("ephemeral", 1, "must be true or false"),
        ("tasks", "2", "must be a whole number"),
        ("files", [], "must be an object"),
    ],
)
def test_a_fault_says_what_is_wrong_with_this_very_value(field: str, value: Any, words: str) -> None:
    assert words in faults({"command": "x", field: value})[f"/{field}"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "empty"),
        ("/etc/x", "absolute"),
        ("a/../b", ".."),
        ("a\0", "NUL"),
        ("x" * 300, "255"),
        ("a//b", "empty"),
    ],
)
def test_a_file_name_is_told_what_is_wrong_with_it(name: str, words: str) -> None:
    assert words in faults({"command": "x", "files": {name: ""}})[pointer("files", name)]


@pytest.mark.parametrize(
    ("limits", "found"),
    [
        ({"cpu": 0.0001}, {"/limits/cpu": "0.0001 is too little to work with: at least 0.01 is needed"}),
        (
            {"memory": "4KiB", "pids": 0},
            {
                "/limits/memory": "4KiB is too little to work with: at least 2MiB is needed;"
                " a number without a unit is in bytes",
                "/limits/pids": "must be greater than or equal to 1",
            },
        ),
        ({"memory": 256}, {"/limits/memory": "256 is too little to work with: at least 2MiB is needed;"
                           " a number without a unit is in bytes"}),
    ],
)  # fmt: skip
def test_limits_that_cannot_work_are_refused_with_what_would(
    limits: dict[str, Any], found: dict[str, str]
) -> None:
    assert faults({"command": "x", "limits": limits}) == found


def test_the_least_limits_that_can_work_are_accepted() -> None:
    least = {"cpu": 0.01, "memory": "2MiB", "pids": 1, "io": {"read_bps": 1, "write_iops": 1}}
    assert parse_job_spec({"command": "x", "limits": least}).limits == Limits(
        0.01, 2 << 20, 1, IoLimits(read_bps=1, write_iops=1)
    )


def test_what_fits_exactly_is_accepted() -> None:
    parse_job_spec({"command": "x", "args": ["y" * (128 * 1024 - 3)], "files": {"a": "y" * (1 << 20)}})


def test_path_and_body_must_name_the_same_worker() -> None:
    assert parse_job_spec({"command": "x", "worker_id": "w1"}, "w1").worker_id == "w1"
    assert faults({"command": "x", "worker_id": "w2"}, "w1").keys() == {"/worker_id"}


ASKED: dict[str, Any] = {
    "limits": {"cpu": 0.5},
    "network": "none",
    "tasks": 2,
    "placement": "pack",
    "on_task_failure": "continue",
    "array": {"count": 3},
    "selector": {"disk": "ssd"},
    "ephemeral": True,
    "priority": 1,
    "retry": {"max": 1, "on": ["worker_lost"]},
}


@pytest.mark.parametrize("name", sorted(NOT_YET))
def test_a_feature_that_is_not_there_yet_is_refused_by_its_name(name: str) -> None:
    found = faults({"command": "x", name: ASKED[name]})
    assert list(found) == [f"/{name}"]
    assert name in found[f"/{name}"] and "not there yet" in found[f"/{name}"]
    default = parse_job_spec({"command": "x"}).document[name]
    assert parse_job_spec({"command": "x", name: default}).document[name] == default


def test_a_flood_of_faults_is_cut() -> None:
    assert len(faults({f"field-{n}": n for n in range(5000)})) == 100
    assert len(faults({"command": "x", "args": [1] * 5000})) == 100


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[" * 1_000_000, b'{"a":' * 100_000, b"NaN", b'"\\ud800"', b"1" * 5000, b"{}{}"],
)
def test_what_is_not_json_is_a_bad_request(body: bytes) -> None:
    with pytest.raises(BadRequest, match="is not JSON" if body else "is empty"):
        read_json(body)


def test_pointers_are_escaped() -> None:
    assert pointer("a/b", "c~d", 0) == "/a~1b/c~0d/0"
