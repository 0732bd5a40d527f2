"""`make start` and `make stop`: the cluster as plain processes in the background, its state kept in build/."""

from __future__ import annotations

import argparse
import os
import sys

from tools.host import BUILD, ROOT, port_is_free, write_env
from tools.local_cluster import ClusterError, Layout, LocalCluster

LAYOUT = Layout(
    certs=ROOT / "certs" / "out",
    run=BUILD / "run",
    state=BUILD / "state",
    settings=BUILD / "settings",
    http_port=8443,
    grpc_port=7443,
)


def start(workers: int) -> None:
    cluster = LocalCluster(LAYOUT, workers)
    if running := cluster.running():
        raise ClusterError(f"it runs already ({' '.join(running)}); `make stop` first")
    for port in (LAYOUT.http_port, LAYOUT.grpc_port):
        if not port_is_free(port):
            raise ClusterError(
                f"port {port} is taken by another program; stop that first (ss -ltnp 'sport = {port}')"
            )
    cluster.start()
    write_env(
        LAYOUT.url, LAYOUT.certs / "ca.crt", LAYOUT.certs / "admin.token", LAYOUT.settings / "client.toml"
    )
    print(f"start: {LAYOUT.url}, {workers} workers ready: {' '.join(cluster.worker_ids())}")
    print(
        f"start: source {os.path.relpath(BUILD / 'env')}; logs in {os.path.relpath(LAYOUT.run)}; `make stop` ends it"
    )


def stop() -> None:
    stopped = LocalCluster(LAYOUT, 0).stop()
    print(f"stop: {' '.join(stopped) or 'nothing runs'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["start", "stop"])
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.workers < 0:
        parser.error("--workers must not be negative")
    try:
        start(arguments.workers) if arguments.what == "start" else stop()
    except (ClusterError, OSError) as error:
        sys.stderr.write(f"{arguments.what}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
