"""The one-shot ``certs`` service of compose.yaml: CA, certificates and tokens, and what workers need of them.

Runs as the controller's user, so that what it writes with mode 0600 belongs to the controller. Workers get a volume
with the CA's certificate and the join token only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

MAKE_CERTS = Path(sys.prefix) / "certs" / "make_certs.py"
CERTS = Path("/var/lib/jobcluster-certs")
JOIN = Path("/var/lib/jobcluster-join")


def copy(name: str) -> None:
    """Copies one file into the workers' volume, 0600, in one step: a worker may be reading it."""
    content = (CERTS / name).read_bytes()
    target = JOIN / name
    if target.exists() and target.read_bytes() == content:
        return
    descriptor, temporary = tempfile.mkstemp(dir=JOIN)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.replace(temporary, target)


def main() -> int:
    status = subprocess.run([sys.executable, "-I", MAKE_CERTS, "--out", CERTS], check=False).returncode
    if status == 0:
        for name in ("ca.crt", "join.token"):
            copy(name)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
