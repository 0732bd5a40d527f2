"""`make test`: the lanes one after the other, each closing with pytest's line; the arguments go to each of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LANES = (("tests/unit", "tests/integration"), ("tests/openapi",))
E2E = "tests/e2e"


def has_engine() -> bool:
    """Whether a container engine with compose 2 answers."""
    commands = (["docker", "info"], ["docker", "compose", "version"])
    return shutil.which("docker") is not None and not any(
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60).returncode
        for command in commands
    )


def lanes() -> list[tuple[str, ...]]:
    found = [tuple(path for path in lane if (ROOT / path).is_dir()) for lane in LANES]
    # Required: it runs, and its own fixtures say what is missing.
    if os.environ.get("JOBCLUSTER_E2E") == "required" or has_engine():
        found.append((E2E,))
    else:
        sys.stderr.write(
            "test: no container engine answers: the e2e lane is not run (JOBCLUSTER_E2E=required demands it)\n"
        )
    return [lane for lane in found if lane]


def main() -> int:
    failed = []
    for lane in lanes():
        print(f"== {' '.join(lane)}", flush=True)
        if subprocess.run([sys.executable, "-m", "pytest", *lane, *sys.argv[1:]], cwd=ROOT).returncode:
            failed.append(" ".join(lane))
    if failed:
        sys.stderr.write(f"test: failed: {', '.join(failed)}\n")
    return len(failed) and 1


if __name__ == "__main__":
    raise SystemExit(main())
