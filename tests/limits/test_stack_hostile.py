"""A hostile job on a real worker: its keys, tokens, settings and other jobs' output stay its own."""

import json
import socket
from pathlib import Path

import pytest
from jobcluster_worker.sandbox import landlock

from tests.integration.cluster import descendants, eventually
from tests.limits.containers import ROOT
from tests.limits.placed import PlacedCluster, leaf_of, python

PROBES = Path(__file__).with_name("probes.py").read_text()


def secrets_of(cluster: PlacedCluster, neighbour: str) -> list[Path]:
    """Files that hold something of ours or of a neighbour's; each is there, and the cluster's directory is open."""
    home, worker = cluster.directory, cluster.directory / "worker-1"
    found = [
        next((worker / "data" / "jobs" / neighbour).rglob("output*")),
        *sorted(path for path in (worker / "state").iterdir() if path.is_file()),
        *sorted(cluster.certs.glob("*.key")),
        *sorted(cluster.certs.glob("*.token")),
        home / "controller.sqlite3",
        home / "worker-1.toml",
        worker / "worker.log",
        *sorted(Path("/run").glob("jobcluster-*/*")),
    ]
    assert all(path.exists() for path in found) and len(found) >= 12, found
    assert home.stat().st_mode & 0o005 == 0o005
    return found


@pytest.mark.parametrize("network", ["none", "host"])
def test_a_hostile_job_gets_nothing(cluster: PlacedCluster, network: str) -> None:
    worker = cluster.workers[0]
    neighbour = cluster.post({"command": "sh", "args": ["-c", "echo canary; sleep 600"]})["job_id"]
    eventually(lambda: cluster.output(neighbour), what="the neighbour's output")
    secrets = secrets_of(cluster, neighbour)
    supervisor = next(
        pid for pid, line in descendants(worker.pid).items() if "launcher" in line and "server" not in line
    )
    address = next(
        w["address"] for w in cluster.list_workers() if w["worker_id"] == cluster.worker_of(worker)
    )
    leaf = leaf_of(neighbour)
    arguments = [":".join(map(str, secrets)), supervisor, leaf, address.rpartition(":")[2]]
    with socket.socket(socket.AF_UNIX) as door:
        door.bind("\0jobcluster-test-door")
        door.listen()
        job = cluster.run(python(PROBES, args=[str(word) for word in arguments], network=network))
    said = json.loads(cluster.output(job["job_id"], stream="stdout"))
    assert len(said) >= 55 + len(secrets)
    got = {name: answer for name, answer in said.items() if not answer.startswith("denied")}
    # In the host's network a port is a port (what is behind it asks for a certificate), and abstract sockets are kept
    # apart where the kernel has Landlock's scopes.
    of_network = {"the worker's port"} | (set() if landlock.available() else {"an abstract socket"})
    assert set(got) == (of_network if network == "host" else set()), got
    assert cluster.job(neighbour)["state"] == "running"
    assert cluster.stop_job(neighbour)["state"] == "stopped"
    assert list(ROOT.rglob(f"jobs/{job['job_id']}/")) == []


RIGHTS = ("Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")


def test_a_job_has_no_rights(cluster: PlacedCluster) -> None:
    job = cluster.run({"command": "cat /proc/self/status"})
    text = cluster.output(job["job_id"]).decode()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    assert [status[name] for name in RIGHTS] == ["", *["0" * 16] * 5, "1", "2"]
    assert int(status["Uid"].split()[0]) > 100_000 and len(set(status["Uid"].split())) == 1
