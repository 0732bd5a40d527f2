"""`make start` and `make stop`: the cluster as plain processes in the background, its state kept in build/.

JOBCLUSTER_HTTP_PORT and JOBCLUSTER_GRPC_PORT choose other ports than 8443 and 7443; with --directory everything,
certificates too, is there instead.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tools.host import BUILD, ROOT, port_is_free, write_env
from tools.local_cluster import ClusterError, Layout, LocalCluster


def layout_in(build: Path, certs: Path) -> Layout:
    return Layout(
        certs=certs,
        run=build / "run",
        state=build / "state",
        settings=build / "settings",
        http_port=port("JOBCLUSTER_HTTP_PORT", 8443),
        grpc_port=port("JOBCLUSTER_GRPC_PORT", 7443),
    )


def port(variable: str, default: int) -> int:
    """
    :raises ClusterError: if the variable has no port.
    """
    given = os.environ.get(variable, str(default))
    if not (given.isascii() and given.isdigit() and 0 < int(given) < 65536):
        raise ClusterError(f"{variable} is {given!r}: a port is a number from 1 to 65535")
    return int(given)


def start(layout: Layout, env: Path, workers: int) -> None:
    cluster = LocalCluster(layout, workers)
    if running := cluster.running():
        raise ClusterError(f"it runs already ({' '.join(running)}); `make stop` first")
    for number, variable in (
        (layout.http_port, "JOBCLUSTER_HTTP_PORT"),
        (layout.grpc_port, "JOBCLUSTER_GRPC_PORT"),
    ):
        if not port_is_free(number):
            raise ClusterError(
                f"port {number} is taken by another program (ss -ltnp 'sport = {number}' names it);"
                f" stop that first, or set {variable} to another port"
            )
    cluster.start()
    write_env(
        env,
        layout.url,
        layout.certs / "ca.crt",
        layout.certs / "admin.token",
        layout.settings / "client.toml",
    )
    ready = "1 worker" if workers == 1 else f"{workers} workers"
    print(f"start: {layout.url}, {ready} ready: {' '.join(cluster.worker_ids())}".removesuffix(": "))
    print(f"start: source {os.path.relpath(env)}; logs in {os.path.relpath(layout.run)}; `make stop` ends it")


def stop(layout: Layout) -> None:
    stopped = LocalCluster(layout, 0).stop()
    print(f"stop: {' '.join(stopped) or 'nothing runs'}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["start", "stop"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--directory", type=Path, help="instead of build/")
    arguments = parser.parse_args()
    if arguments.workers < 0:
        parser.error("--workers must not be negative")
    build, certs = BUILD, ROOT / "certs" / "out"
    if arguments.directory is not None:
        build = arguments.directory.absolute()
        certs = build / "certs"
    try:
        layout = layout_in(build, certs)
        start(layout, build / "env", arguments.workers) if arguments.what == "start" else stop(layout)
    except (ClusterError, OSError, ValueError) as error:
        sys.stderr.write(f"{arguments.what}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
