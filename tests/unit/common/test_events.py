"""Every log call of the product uses a name of the table, at one of its levels; every name of the table is used."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jobcluster_common.events import BOTH, CONTROLLER, EVENTS, WORKER, table

ROOT = Path(__file__).resolve().parents[3]
LEVELS = {"debug", "info", "warning", "error"}
# What another word is used for the same thing elsewhere.
OTHER_WORDS = {
    "job",
    "jobid",
    "task",
    "rank",
    "task_id",
    "worker",
    "name",
    "why",
    "error",
    "code",
    "path_params",
}


@dataclass(frozen=True)
class LogCall:
    where: str
    names: frozenset[str]
    levels: frozenset[str]
    fields: frozenset[str]


def constants(node: ast.expr) -> frozenset[str]:
    """The texts that an expression may be; none when that cannot be seen."""
    match node:
        case ast.Constant(value=str(text)):
            return frozenset({text})
        case ast.IfExp(body=body, orelse=orelse):
            one, other = constants(body), constants(orelse)
            return one | other if one and other else frozenset()
    return frozenset()


def log_calls(source: str, where: str) -> Iterator[LogCall]:
    tree = ast.parse(source)
    has_log = "structlog.get_logger" in source
    named = {
        target.id: constants(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Attribute(value=ast.Name(id="log"), attr=attr) if has_log:
                levels = frozenset({attr})
            case ast.Name(id="note"):
                level = node.args[1] if len(node.args) > 1 else ast.Constant("info")
                levels = named.get(level.id, frozenset()) if isinstance(level, ast.Name) else constants(level)
            case _:
                continue
        fields = frozenset(keyword.arg for keyword in node.keywords if keyword.arg)
        names = constants(node.args[0]) if node.args else frozenset[str]()
        yield LogCall(f"{where}:{node.lineno}", names, levels, fields)


def sources() -> dict[str, str]:
    found = {}
    for room in ("services/controller", "services/worker", "shared/common"):
        for path in sorted((ROOT / room).rglob("*.py")):
            where = str(path.relative_to(ROOT))
            if "/build/" not in where:
                found[where] = path.read_text()
    return found


@pytest.fixture(scope="module")
def calls() -> dict[str, list[LogCall]]:
    """By the distribution they are in."""
    found: dict[str, list[LogCall]] = {}
    for where, source in sources().items():
        found.setdefault("/".join(where.split("/")[:2]), []).extend(log_calls(source, where))
    return found


def test_every_call_uses_names_of_the_table_at_their_levels(calls: dict[str, list[LogCall]]) -> None:
    allowed = {
        "services/controller": {**CONTROLLER, **BOTH},
        "services/worker": {**WORKER, **BOTH},
        "shared/common": BOTH,
    }
    for distribution, found in calls.items():
        assert found, distribution
        for call in found:
            assert call.names, f"{call.where}: the event's name is not written there"
            assert call.levels and call.levels <= LEVELS, f"{call.where}: levels {set(call.levels)}"
            for name in call.names:
                assert name in allowed[distribution], f"{call.where}: {name} is no event of {distribution}"
                assert call.levels <= set(EVENTS[name].levels), f"{call.where}: {name}: {set(call.levels)}"


def test_every_name_of_the_table_is_used_and_so_is_each_of_its_levels(
    calls: dict[str, list[LogCall]],
) -> None:
    used: dict[str, set[str]] = {}
    for found in calls.values():
        for call in found:
            for name in call.names:
                used.setdefault(name, set()).update(call.levels)
    assert {name: set(event.levels) for name, event in EVENTS.items()} == used


def test_a_field_has_the_same_name_everywhere(calls: dict[str, list[LogCall]]) -> None:
    for found in calls.values():
        for call in found:
            assert not call.fields & OTHER_WORDS, f"{call.where}: {set(call.fields & OTHER_WORDS)}"
            if "job_id" in call.fields and "job" not in "".join(call.names):
                assert {"task_rank", "attempt"} <= call.fields, f"{call.where}: whose attempt?"


def test_there_is_no_other_way_into_the_log() -> None:
    for where, source in sources().items():
        loggers = re.findall(r"^(.*)structlog\.get_logger\(", source, re.MULTILINE)
        assert set(loggers) <= {"log = "}, where
        if not where.endswith("jobcluster_common/logs.py"):
            assert not re.search(r"logging\.|print_exc|\bprint\(|show_locals|capture_locals", source), where


def test_names_are_words_in_the_past_or_of_a_state_and_each_has_its_sentence() -> None:
    assert len(EVENTS) == len(CONTROLLER) + len(WORKER) + len(BOTH)
    for name, event in EVENTS.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", name)
        assert event.meaning and not event.meaning.endswith(".")


def test_a_name_outside_of_the_table_is_found() -> None:
    (bad, unseen) = log_calls(
        'log = structlog.get_logger()\nlog.info("something_else", why="x")\nlog.info(f"job {1} ended")\n',
        "here",
    )
    assert bad.names == {"something_else"} and not bad.names <= set(EVENTS)
    assert bad.fields & OTHER_WORDS
    assert unseen.names == frozenset()


def test_the_page_for_operators_shows_the_table() -> None:
    page = (ROOT / "docs" / "logs.md").read_text()
    shown = page.split("<!-- events -->\n")[1]
    assert shown == table(), "docs/logs.md: put in what `python -m jobcluster_common.events` prints"
