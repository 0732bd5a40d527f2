from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from bench.figures import result, table, write


def test_a_ratio_is_judged_where_there_is_a_baseline() -> None:
    good = result("jobs", 50.0, "jobs/s", baseline=100.0, at_least=0.45)
    assert (good.ratio, good.target, good.ok) == (0.5, ">= 0.45", True)
    assert result("cpu", 5.0, "ms", baseline=1.0, at_most=4.5).ok is False


def test_a_value_is_judged_where_there_is_none() -> None:
    assert result("memory", 91.0, "MiB", at_most=90).ok is False
    assert result("memory", 89.0, "MiB", at_most=90).ratio is None


def test_without_a_target_nothing_is_judged() -> None:
    plain = result("first byte", 9.0, "ms", baseline=3.0)
    assert (plain.ratio, plain.target, plain.ok) == (3.0, None, None)


def test_each_line_of_the_file_is_one_result(tmp_path: Path) -> None:
    results = [result("a", 1.0, "s"), result("b", 2.0, "s", baseline=1.0, at_most=3)]
    write(results, tmp_path / "results" / "latest.jsonl")
    lines = (tmp_path / "results" / "latest.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [asdict(r) for r in results]
    assert set(json.loads(lines[0])) == {"name", "value", "unit", "baseline", "ratio", "target", "ok"}


def test_the_table_shows_what_was_missed() -> None:
    shown = table([result("slow", 1.0, "jobs/s", baseline=10.0, at_least=0.45)])
    assert shown.splitlines()[1].split()[-1] == "MISSED"
