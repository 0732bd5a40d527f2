"""Output in awkward shapes and amounts: floods, one endless line, single bytes. Every byte is kept or counted."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.integration.cluster import Cluster
from tests.integration.reader import EVENTS, RAW
from tests.integration.truth import MIB, reader, size, task_directory

# Counts what it has written into a file of its own: what was dropped can be told from what it says.
FLOOD = """
import os, time
block, written, until = b"y\\n" * 32768, 0, time.monotonic() + {seconds}
while time.monotonic() < until:
    written += os.write(1, block)
open("written", "w").write(str(written))
"""


@pytest.mark.timeout(180)
def test_a_flood_under_a_cap_keeps_its_head_counts_the_rest_and_holds_up_no_heartbeat(
    own_cluster: Cluster,
) -> None:
    cap = size(4 * MIB, 16 * MIB)
    neighbour = own_cluster.post({"command": ["sh", "-c", "while sleep 0.1; do echo here; done"]})
    flood = own_cluster.post(
        {
            "command": "python3",
            "path": "flood.py",
            "files": {"flood.py": FLOOD.format(seconds=size(3, 20))},
            "output": {"max_bytes": cap},
        }
    )
    states, seen, done = set(), set(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            worker = own_cluster.list_workers()[0]
            states.add(worker["state"])
            seen.add(worker["last_seen_at"])
            done.wait(0.2)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        ended = own_cluster.job(flood["job_id"], wait=60)
        done.set()
        watching.result()
    assert (ended["state"], ended["reason"], ended["exit_code"]) == ("succeeded", "exited", 0), ended
    directory = task_directory(ended)
    written = int((directory / "work" / "written").read_text())
    output = ended["output"]
    assert output["bytes"] == cap < written
    assert output["bytes"] + output["dropped_bytes"] == written
    disk = sum((directory / name).stat().st_blocks * 512 for name in ("output", "index"))
    assert disk <= cap + 2 * MIB
    head = own_cluster.output(flood["job_id"])
    assert head == b"y\n" * (cap // 2)
    assert states == {"ready"} and len(seen) > 1
    assert own_cluster.job(neighbour["job_id"])["state"] == "running"
    assert own_cluster.output(neighbour["job_id"]).endswith(b"here\n")


@pytest.mark.timeout(180)
def test_one_line_without_a_newline_is_neither_held_back_nor_cut(cluster: Cluster) -> None:
    total = size(12, 100) * 1_000_000
    job = cluster.post({"command": ["sh", "-c", f"head -c {total} /dev/zero | tr '\\0' x"]})
    for form in (RAW, EVENTS):
        reading = reader(cluster, job["job_id"], form).read()
        assert reading.offset == total
    with cluster.client() as client:
        path = f"/v1/jobs/{job['job_id']}/output"
        tail = client.get(path, params={"tail": 1})
    assert len(tail.content) == total and tail.content.count(b"x") == total
    assert cluster.job(job["job_id"])["output"]["sha256"] == reading.sha256


def single_bytes(count: int) -> dict[str, Any]:
    text = f"import os\nfor n in range({count}):\n    os.write(1, bytes([n % 256]))\n"
    return {"command": "python3", "path": "bytes.py", "files": {"bytes.py": text}}


@pytest.mark.timeout(180)
def test_one_byte_per_write_arrives_as_written_and_its_index_stays_smaller_than_it(cluster: Cluster) -> None:
    total = MIB
    job = cluster.run(single_bytes(total), wait=60)
    assert (job["state"], job["output"]["bytes"]) == ("succeeded", total)
    assert cluster.output(job["job_id"]) == bytes(range(256)) * (total // 256)
    assert (task_directory(job) / "index").stat().st_size < total / 4
