"""The environment of a task, built from nothing: the worker's own never reaches a process. Stdlib only."""

from __future__ import annotations

import zlib

from jobcluster_worker.launcher.shapes import Spec

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Below 32768, where ephemeral ports begin (ip_local_port_range), so that no client socket sits on it by chance.
_PORT_FIRST, _PORT_COUNT = 20000, 12000


def environment(spec: Spec, home: str, temporary: str = "/tmp") -> dict[str, str]:
    """Every variable of the task's processes; the spec's own win.

    ``home`` is the working directory as the task sees it. Ranks of one job on one host (by ``peers``) count up in
    LOCAL_RANK; all ranks of a job get the same MASTER_ADDR and MASTER_PORT, so torch.distributed starts as it is.
    """
    rank, count = spec["task_rank"], max(1, spec.get("task_count") or 1)
    hosts = spec.get("peers") or ["127.0.0.1"] * count
    own = hosts[rank] if rank < len(hosts) else None
    built = {
        "PATH": SYSTEM_PATH,
        "HOME": home,
        "LANG": "C.UTF-8",
        "TMPDIR": temporary,
        "PYTHONUNBUFFERED": "1",
        "JOBCLUSTER_JOB_ID": spec["job_id"],
        "JOBCLUSTER_TASK_RANK": str(rank),
        "JOBCLUSTER_TASK_COUNT": str(count),
        "JOBCLUSTER_WORKER_ID": spec.get("worker_id") or "",
        "JOBCLUSTER_ATTEMPT": str(spec["attempt"]),
        "JOBCLUSTER_PEERS": ",".join(hosts),
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(hosts[:rank].count(own) if own is not None else 0),
        "MASTER_ADDR": hosts[0],
        "MASTER_PORT": str(_PORT_FIRST + zlib.crc32(spec["job_id"].encode()) % _PORT_COUNT),
    }
    index = spec.get("array_index")
    if index is not None:
        built["JOBCLUSTER_ARRAY_INDEX"] = str(index)
    return {**built, **(spec.get("env") or {})}
