"""The real compose.yaml as one running project of its own name, on a port of its own."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from pathlib import Path
from typing import Any

from testcontainers.compose import DockerCompose

from tests.e2e.api import Api, wait_until
from tools.host import free_port

ROOT = Path(__file__).resolve().parents[2]
CERTS = "/var/lib/jobcluster-certs"


def docker(*arguments: str, seconds: float = 60) -> str:
    """Runs the engine's command; its stdout. Fails the test with stderr if it does not end with 0."""
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, (
        f"docker {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done.stdout


def inspect(container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("inspect", container))[0]
    return found


class Stack:
    """One ``docker compose`` project. ``up`` it, scale it, hurt it; ``down`` leaves nothing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.project = f"jobcluster-e2e-{secrets.token_hex(3)}"
        self.port = free_port()
        self.compose = DockerCompose(context=ROOT, compose_file_name=["compose.yaml", "tests/e2e/lease.yaml"])
        self._volumes: set[str] = set()
        self._apis: list[Api] = []
        # testcontainers runs compose with this process's environment.
        os.environ["COMPOSE_PROJECT_NAME"] = self.project
        os.environ["JOBCLUSTER_HTTP_PORT"] = str(self.port)
        os.environ["JOBCLUSTER_IMAGE_TAG"] = "e2e"
        os.environ.setdefault("JOBCLUSTER_LIMITS__REQUIRE", "true" if self._has_controllers() else "false")

    @staticmethod
    def _has_controllers() -> bool:
        return docker("info", "--format", "{{.CgroupVersion}}").strip() == "2"

    def run(self, *arguments: str, seconds: float = 180, status: int | None = 0) -> str:
        """``docker compose ARGUMENTS`` of this project; stdout and stderr. ``status`` None = any."""
        command = [*self.compose.compose_command_property, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
        said = done.stdout + done.stderr
        if status is not None and done.returncode != status:
            logs = subprocess.run(
                [*self.compose.compose_command_property, "logs", "--tail", "60"],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            raise AssertionError(f"{command}: {done.returncode}\n{said}\n{logs.stdout}{logs.stderr}")
        return said

    def scale(self, workers: int) -> None:
        """``up`` with so many workers; returns when the engine calls all of them healthy."""
        self._note_volumes()
        self.run("up", "-d", "--wait", "--no-recreate", "--scale", f"worker={workers}")
        self._note_volumes()

    def file(self, name: str) -> bytes:
        """A file of the certificates volume, read as the README says."""
        done = subprocess.run(
            [*self.compose.compose_command_property, "exec", "-T", "controller", "cat", f"{CERTS}/{name}"],
            cwd=ROOT,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def api(self, role: str | None = "admin") -> Api:
        """A client with the token of ``role``; None = without any."""
        ca_file = self.directory / "ca.crt"
        ca_file.write_bytes(self.file("ca.crt"))
        token = None if role is None else self.file(f"{role}.token").decode().strip()
        api = Api(f"https://127.0.0.1:{self.port}", ca_file, token)
        self._apis.append(api)
        return api

    def containers(self, service: str, state: str | None = None) -> list[str]:
        """Full ids of the service's containers, stopped ones too."""
        filters = [
            f"label=com.docker.compose.project={self.project}",
            f"label=com.docker.compose.service={service}",
        ]
        if state is not None:
            filters.append(f"status={state}")
        arguments = [word for f in filters for word in ("--filter", f)]
        return docker("ps", "-aq", "--no-trunc", *arguments).split()

    def processes(self, container: str) -> str:
        """The container's processes as the host sees them: pid, parent, uid, command line."""
        return docker("top", container, "-eo", "pid,ppid,uid,args")

    def healthy(self, service: str, count: int, seconds: float = 90) -> None:
        def healths() -> list[str]:
            return [
                inspect(c)["State"].get("Health", {}).get("Status", "none") for c in self.containers(service)
            ]

        wait_until(healths, lambda h: h.count("healthy") == count, seconds, f"{count} healthy of {service}")

    def container_of(self, worker_id: str, api: Api) -> str:
        """The container that runs this worker: the one with the address that the controller dials."""
        address = api.call("GET", f"/v1/workers/{worker_id}", 200)["address"].rsplit(":", 1)[0]
        for container in self.containers("worker"):
            networks = inspect(container)["NetworkSettings"]["Networks"].values()
            if address in {n["IPAddress"] for n in networks}:
                return container
        raise AssertionError(f"no container has the address {address}")

    def down(self) -> None:
        for api in self._apis:
            api.close()
        self._note_volumes()
        self.run("down", "--volumes", "--timeout", "20", "--remove-orphans", status=None)
        # Anonymous volumes of replicas that were scaled away have no owner any more.
        left = set(docker("volume", "ls", "-q").split()) & self._volumes
        if left:
            docker("volume", "rm", *sorted(left))

    def _note_volumes(self) -> None:
        for container in self.containers("worker"):
            self._volumes |= {m["Name"] for m in inspect(container)["Mounts"] if m["Type"] == "volume"}
