"""`make bench`: a cluster of its own as plain processes, all measures, a table, and bench/results/latest.jsonl."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench import followers, measures
from bench.client import Target
from bench.figures import LATEST, Result, print_table, write
from tests.integration.cluster import running_cluster


def measure(cluster: measures.Cluster, scale: float) -> list[Result]:
    """All measures; memory first, while the cluster is idle. ``scale`` 1 takes about a minute."""

    def few(count: int) -> int:
        return max(1, int(count * scale))

    results = measures.memory(cluster)
    # The first load of all: what another one had left in the processes' memory would be used again, and not seen.
    crowd = followers.followers(cluster, few(200))
    results += measures.jobs(cluster, few(1000))
    results.append(measures.first_byte(cluster, few(60), 0))
    results.append(measures.first_byte(cluster, few(10), 1.0))
    results.append(measures.output(cluster, few(128)))
    results.append(measures.control_calls(cluster, few(4000)))
    results.append(followers.latency(cluster, few(200)))
    results += crowd
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="more or fewer repetitions (1)")
    parser.add_argument("--out", type=Path, default=LATEST)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="jobcluster-bench-") as directory,
        running_cluster(Path(directory), workers=1) as cluster,
    ):
        url = f"https://127.0.0.1:{cluster.https}"
        target = Target.of(url, cluster.certs / "ca.crt", cluster.token("admin"))
        workers = tuple(worker.pid for worker in cluster.workers)
        results = measure(
            measures.Cluster(target, cluster.certs, cluster.controller.pid, workers), arguments.scale
        )
    write(results, arguments.out)
    print_table(results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
