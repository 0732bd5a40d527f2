"""What the tests of output share: jobs whose bytes are known beforehand, gates, sizes, and what processes hold."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.integration.cluster import Cluster, eventually
from tests.integration.reader import RAW, Reader

MIB = 1 << 20
FULL = os.environ.get("TRUTH") == "full"
"""With TRUTH=full the sizes are those of a real flood; without, those of a busy little machine."""

_CHUNKS = [7, 7, 7, 100, 100, 4096, 4096, 65536, MIB]
# Seeded, so that the test knows every byte without being told.
_KNOWN = """
import os, random, time
seed, size, gate, fds = {seed}, {size}, {gate}, {fds}
def wait(name):
    while not os.path.exists(name):
        time.sleep(0.01)
def write(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]
rngs = [random.Random(seed + i) for i in range(len(fds))]
order, left = random.Random(seed - 1), [size] * len(fds)
count = 0
while any(left):
    i = order.choice([i for i, n in enumerate(left) if n])
    n = min(left[i], order.choice({chunks}))
    write(fds[i], rngs[i].randbytes(n))
    left[i] -= n
    count += 1
    if count == 1 and gate:
        wait("go")
    if count % 16 == 0:
        time.sleep({pause})
"""


def size(ci: int, full: int) -> int:
    return full if FULL else ci


def known_job(
    size: int, seed: int = 7, *, gate: bool = False, fds: tuple[int, ...] = (1,), pause: float = 0.0
) -> dict[str, Any]:
    """``size`` known random bytes on each of ``fds``; ``gate``: after the first chunk it waits for one."""
    text = _KNOWN.format(seed=seed, size=size, gate=gate, fds=fds, pause=pause, chunks=_CHUNKS)
    return {"command": "python3", "path": "known.py", "files": {"known.py": text}}


def known_sha256(size: int, seed: int = 7) -> str:
    """The hash of what ``known_job`` writes on its only descriptor."""
    return known_parts(size, seed, 1)[0]


def known_parts(size: int, seed: int, parts: int) -> list[str]:
    """The hashes of what ``known_job`` writes on each of several descriptors."""
    order, left = random.Random(seed - 1), [size] * parts
    rngs, digests = [random.Random(seed + i) for i in range(parts)], [hashlib.sha256() for _ in range(parts)]
    while any(left):
        i = order.choice([i for i, n in enumerate(left) if n])
        n = min(left[i], order.choice(_CHUNKS))
        digests[i].update(rngs[i].randbytes(n))
        left[i] -= n
    return [digest.hexdigest() for digest in digests]


def task_directory(job: dict[str, Any]) -> Path:
    """Where the job's output and work directory are (its worker runs on this machine)."""
    return Path(job["output"]["path"]).parent


def open_gate(cluster: Cluster, job_id: str) -> None:
    job = cluster.until(job_id, "running")
    (task_directory(job) / "work" / "go").touch()


def reader(cluster: Cluster, job_id: str, form: str = RAW, **more: Any) -> Reader:
    ca_file = str(cluster.certs / "ca.crt")
    return Reader(more.pop("port", cluster.https), ca_file, cluster.token("admin"), job_id, form, **more)


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def watches(pid: int) -> int:
    """How many files a process watches by inotify."""
    count = 0
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            count += entry.read_text().count("inotify wd:")
        except FileNotFoundError:
            continue
    return count


def reset_peak(pid: int) -> None:
    """Makes VmHWM count from now (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def memory(pid: int, key: str = "VmRSS") -> int:
    """Bytes of resident memory, or with "VmHWM" the most there were."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {key} of {pid}")


def metric(cluster: Cluster, name: str) -> float:
    """The value of a metric without labels."""
    with cluster.client() as client:
        text = client.get("/metrics").text
    for line in text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise AssertionError(f"no metric {name}")


def comes_back_to(base: int, get: Callable[[], int], what: str, slack: int = 0) -> None:
    eventually(lambda: get() <= base + slack, what=f"{what} down to {base} (+{slack})")
