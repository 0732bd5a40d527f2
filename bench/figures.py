"""One measured figure beside its bare baseline, as a JSON line and as a row of a table."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

LATEST = Path(__file__).resolve().parent / "results" / "latest.jsonl"


@dataclass(frozen=True)
class Result:
    """``ratio`` = value / baseline. ``target`` is a bound of the ratio, or of the value where there is no baseline.

    ``ok`` says whether it holds; None = there is no target.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    target: str | None = None
    ok: bool | None = None


def result(
    name: str,
    value: float,
    unit: str,
    baseline: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Result:
    ratio = value / baseline if baseline else None
    judged = value if ratio is None else ratio
    if at_least is not None:
        target, ok = f">= {at_least:g}", judged >= at_least
    elif at_most is not None:
        target, ok = f"<= {at_most:g}", judged <= at_most
    else:
        return Result(name, round(value, 4), unit, _rounded(baseline), _rounded(ratio))
    return Result(name, round(value, 4), unit, _rounded(baseline), _rounded(ratio), target, ok)


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


def write(results: list[Result], path: Path = LATEST) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(asdict(r))}\n" for r in results))


def table(results: list[Result]) -> str:
    head = ("what", "value", "unit", "bare", "ratio", "target", "")
    rows = [
        (
            r.name,
            f"{r.value:,.2f}",
            r.unit,
            "" if r.baseline is None else f"{r.baseline:,.2f}",
            "" if r.ratio is None else f"{r.ratio:.2f}",
            r.target or "",
            {None: "", True: "ok", False: "MISSED"}[r.ok],
        )
        for r in results
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    left = {0, 2, 5, 6}
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    )


def print_table(results: list[Result]) -> None:
    sys.stdout.write(f"{table(results)}\n")
