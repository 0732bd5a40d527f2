"""`make up` and `make down`: the cluster of compose.yaml, and build/env as `make start` writes it."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from tools.host import BUILD, ROOT, port_is_free, write_env, write_secret

SECRETS = BUILD / "compose"
CERTS = "/var/lib/jobcluster-certs"


class UpError(Exception):
    """``str()`` says what is missing or in the way."""


def run(command: list[str], capture: bool = False) -> bytes:
    """Runs a command in the repository; its stdout where it is captured.

    :raises UpError: if it does not end with 0, or there is no such command.
    """
    try:
        done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE if capture else None)
    except FileNotFoundError:
        raise UpError(
            "no `docker` in PATH: `make up` needs a container engine; `make start` does not"
        ) from None
    if done.returncode:
        raise UpError(f"`{shlex.join(command)}` ended with {done.returncode}")
    return done.stdout or b""


def compose(*arguments: str, capture: bool = False) -> bytes:
    return run(["docker", "compose", *arguments], capture)


def published() -> str | None:
    """host:port of the running controller's API, or None when it does not run."""
    running = compose("ps", "--status", "running", "--format", "json", "controller", capture=True).decode()
    # One JSON document a line since compose 2.21, one list before.
    for line in running.splitlines():
        found = json.loads(line)
        for container in found if isinstance(found, list) else [found]:
            for port in container.get("Publishers") or []:
                if port["TargetPort"] == 8443 and port["PublishedPort"]:
                    return f"127.0.0.1:{port['PublishedPort']}"
    return None


def fetch_env(address: str) -> Path:
    """CA and admin token out of the running controller, and build/env for a shell to source."""
    SECRETS.mkdir(parents=True, exist_ok=True)
    ca_file, token_file = SECRETS / "ca.crt", SECRETS / "admin.token"
    ca_file.write_bytes(compose("exec", "-T", "controller", "cat", f"{CERTS}/ca.crt", capture=True))
    token = compose("exec", "-T", "controller", "cat", f"{CERTS}/admin.token", capture=True).decode()
    write_secret(token_file, token)
    env = BUILD / "env"
    write_env(env, f"https://{address}", ca_file, token_file, SECRETS / "client.toml")
    return env


def up(workers: int) -> None:
    port = int(os.environ.get("JOBCLUSTER_HTTP_PORT", "8443"))
    if published() is None and not port_is_free(port):
        raise UpError(f"port {port} of 127.0.0.1 is taken; free it, or set JOBCLUSTER_HTTP_PORT")
    compose("up", "-d", "--build", "--wait", "--scale", f"worker={workers}")
    address = published()
    if address is None:
        raise UpError("the controller does not run; `docker compose logs controller` says why")
    print(f"up: https://{address} with {workers} workers; source {fetch_env(address)}")


def own_volumes() -> set[str]:
    """The anonymous volumes of the workers. After an `up` with a new image compose knows them by name, and `rm
    --volumes` leaves them."""
    containers = compose("ps", "--all", "--quiet", "worker", capture=True).decode().split()
    if not containers:
        return set()
    found = json.loads(run(["docker", "inspect", *containers], capture=True))
    mounts = [mount for container in found for mount in container["Mounts"]]
    return {m["Name"] for m in mounts if m["Type"] == "volume" and m["Destination"] == "/var/lib/jobcluster"}


def down() -> None:
    """Ends everything; jobs and tokens stay in named volumes. The workers' own volumes are of no use to anyone then."""
    volumes = own_volumes()
    compose("down")
    if volumes:
        run(["docker", "volume", "rm", *sorted(volumes)], capture=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["up", "down"])
    parser.add_argument("--workers", type=int, default=3)
    arguments = parser.parse_args()
    try:
        up(arguments.workers) if arguments.what == "up" else down()
    except UpError as error:
        sys.stderr.write(f"{arguments.what}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
