"""Makes .venv from the hash-locked requirements files: `run` for the services, `dev` for tests and tools too.

It is run by any Python that is there, and needs only venv. What was done is kept in a stamp; it is done again when a
locked file, a pyproject.toml, the Python or the place of the clone has changed.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
OWN = ("shared/proto", "shared/common", "services/controller", "services/worker")
LOCKS = {
    "run": (
        "services/requirements-build.lock",
        "services/controller/requirements.lock",
        "services/worker/requirements.lock",
    ),
    "dev": ("services/requirements-build.lock", "requirements-dev.lock"),
}


def fail(text: str) -> "None":
    sys.stderr.write(f"set-up: {text}\n")
    raise SystemExit(1)


def digest(stage: str) -> str:
    """Of all that the stage is made from."""
    whole = hashlib.sha256(f"{ROOT}\n{sys.version}\n".encode())
    for name in (*LOCKS[stage], *(f"{path}/pyproject.toml" for path in OWN)):
        whole.update((ROOT / name).read_bytes())
    return whole.hexdigest()


def stamp(stage: str) -> Path:
    return VENV / f".jobcluster-{stage}"


def is_done(stage: str) -> bool:
    try:
        return stamp(stage).read_text() == digest(stage)
    except OSError:
        return False


def is_usable() -> bool:
    """Whether .venv is of this Python and was made at this place (a venv cannot be moved)."""
    python = VENV / "bin" / "python"
    code = "import sys; print(sys.version, sys.prefix, sep='\\n')"
    try:
        found = subprocess.run(
            [python, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
        script = (VENV / "bin" / "pip").read_text().splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return False
    return found.stdout == f"{sys.version}\n{VENV}\n" and str(VENV) in script


def run(argv: "list[object]") -> None:
    # Settings of the caller's own environment that would send pip elsewhere than into .venv.
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "PIP_REQUIRE_VIRTUALENV"
    }
    environment.update(
        PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", PIP_ROOT_USER_ACTION="ignore"
    )
    environment.pop("PIP_TARGET", None)
    environment.pop("PIP_PREFIX", None)
    status = subprocess.run(
        [str(a) for a in argv], env=environment, cwd=ROOT, stdin=subprocess.DEVNULL
    ).returncode
    if status:
        fail(f"`{' '.join(str(a) for a in argv)}` ended with {status}")


def make(stage: str) -> None:
    if not is_usable():
        sys.stderr.write(f"set-up: {VENV} with Python {sys.version.split()[0]}\n")
        run([sys.executable, "-m", "venv", "--clear", VENV])
    for each in LOCKS:
        stamp(each).unlink(missing_ok=True)
    python = VENV / "bin" / "python"
    sys.stderr.write(f"set-up: packages for {stage}\n")
    locks = [argument for name in LOCKS[stage] for argument in ("-r", ROOT / name)]
    run([python, "-m", "pip", "install", "--quiet", "--require-hashes", *locks])
    own = [argument for path in OWN for argument in ("-e", ROOT / path)]
    # Our own distributions are on no index: by path, without looking anything up.
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", *own])
    stamp(stage).write_text(digest(stage))
    if stage == "dev":
        stamp("run").write_text(digest("run"))


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 (any Python may run this file)
        fail(
            f"Python 3.11 or newer is needed, and this is {sys.version.split()[0]}: make PYTHON=python3.13 …"
        )
    stage = sys.argv[1] if len(sys.argv) == 2 else ""
    if stage not in LOCKS:
        fail("usage: setup.py run|dev")
    directory = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)  # two `make` at once in one clone
    if not is_done(stage):
        make(stage)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
