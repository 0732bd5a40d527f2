"""What the load's jobs do: each tells a file of its own start and end, so that the truth does not pass the cluster."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("exit", "signal", "stop", "timeout")
ERR_EVERY = 4
PAUSE_SECONDS = 0.2

# The witness file is opened for appending: lines this short are written whole, whoever else writes (POSIX, PIPE_BUF).
SCRIPT = """
witness=$1 count=$2 end=$3
echo "start $JOBCLUSTER_JOB_ID $JOBCLUSTER_ATTEMPT $$" >> "$witness"
i=0
while [ $i -lt $count ]; do
  i=$((i+1))
  echo "out $i"
  [ $((i % {every})) -ne 0 ] || echo "err $i" >&2
  sleep {pause}
done
echo "end $JOBCLUSTER_JOB_ID $JOBCLUSTER_ATTEMPT $end" >> "$witness"
[ "$end" != KILL ] || kill -KILL $$
exit $end
"""


@dataclass(frozen=True)
class Plan:
    """One job of the load: how many lines, and which end. ``after_seconds`` is when a stop or timeout comes."""

    kind: str
    count: int
    end: str
    after_seconds: float = 0.0

    def spec(self, witness: Path) -> dict[str, Any]:
        script = SCRIPT.format(every=ERR_EVERY, pause=PAUSE_SECONDS)
        body: dict[str, Any] = {
            "command": ["sh", "-c", script, "sh", str(witness), str(self.count), self.end]
        }
        if self.kind == "timeout":
            body["timeout_seconds"] = self.after_seconds
        return body


def plan(rng: random.Random) -> Plan:
    kind = rng.choices(KINDS, weights=(7, 1, 2, 1))[0]
    count = rng.choice((0, 1, 5, 20, 40))
    if kind == "exit":
        return Plan(kind, count, str(rng.choice((0, 0, 1, 7, 255))))
    if kind == "signal":
        return Plan(kind, count, "KILL")
    return Plan(kind, 200, "0", rng.uniform(0.5, 6.0))


def stdout(count: int) -> bytes:
    return b"".join(b"out %d\n" % n for n in range(1, count + 1))


def stderr(count: int) -> bytes:
    return b"".join(b"err %d\n" % n for n in range(ERR_EVERY, count + 1, ERR_EVERY))


@dataclass(frozen=True)
class Line:
    """One line of the witness file: ``what`` is "start" or "end"; ``detail`` a pid, or how the script meant to end."""

    what: str
    job_id: str
    attempt: int
    detail: str


def read(witness: Path) -> list[Line]:
    lines = []
    for text in witness.read_text().splitlines():
        what, job_id, attempt, detail = text.split()
        lines.append(Line(what, job_id, int(attempt), detail))
    return lines
