"""Makes the hash-locked requirements files with uv: what the services need, and all that development needs.

Our own distributions are never resolved: they are on no index and are installed by path. One resolution serves all
files, so that tests run with the very versions that the images have.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTIONS = {
    "jobcluster-proto": ROOT / "shared/proto",
    "jobcluster-common": ROOT / "shared/common",
    "jobcluster-controller": ROOT / "services/controller",
    "jobcluster-worker": ROOT / "services/worker",
}
SERVICES = ("jobcluster-controller", "jobcluster-worker")
DEVELOPMENT = ROOT / "requirements-dev.lock"
HEADER = "# Made by `make lock`; do not edit. What to install is in the pyproject.toml files and requirements-dev.in.\n"


def third_party(name: str) -> Iterator[str]:
    """What a distribution of ours needs from elsewhere, through those of ours that it needs."""
    project = tomllib.loads((DISTRIBUTIONS[name] / "pyproject.toml").read_text())["project"]
    for requirement in project.get("dependencies", ()):
        bare = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        if bare in DISTRIBUTIONS:
            yield from third_party(bare)
        else:
            yield requirement


def compile_lock(
    uv: str, requirements: list[str], output: Path, constraint: Path | None, upgrade: bool
) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".in") as source:
        source.write("\n".join(sorted(set(requirements))))
        source.flush()
        argv = [
            uv,
            "pip",
            "compile",
            "--quiet",
            "--universal",
            "--generate-hashes",
            "--python-version",
            "3.11",
        ]
        argv += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
        argv += ["--constraint", str(constraint)] if constraint else []
        argv += ["--upgrade"] if upgrade else []
        # The old lock is the preference of the new one: only what must change does.
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / output.name
            if output.exists():
                made.write_text(output.read_text())
            subprocess.run(
                [*argv, source.name, "--output-file", str(made)], check=True, stdout=subprocess.DEVNULL
            )
            output.write_text(HEADER + made.read_text().removeprefix(HEADER))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uv", default="uv", help="the uv program")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    arguments = parser.parse_args()
    development = [
        line.partition("#")[0].strip() for line in (ROOT / "requirements-dev.in").read_text().splitlines()
    ]
    everything = [r for name in DISTRIBUTIONS for r in third_party(name)] + [r for r in development if r]
    try:
        compile_lock(arguments.uv, everything, DEVELOPMENT, None, arguments.upgrade)
        for name in SERVICES:
            output = DISTRIBUTIONS[name] / "requirements.lock"
            compile_lock(arguments.uv, list(third_party(name)), output, DEVELOPMENT, arguments.upgrade)
    except FileNotFoundError:
        sys.stderr.write("lock: uv is not there; install it, or name it: make lock UV=/path/to/uv\n")
        return 1
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
