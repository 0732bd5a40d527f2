"""A plain client of the HTTP API for the end-to-end tests: no knowledge of the product's own code."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx2

JSON = dict[str, Any]
T = TypeVar("T")
TERMINAL = frozenset({"succeeded", "failed", "stopped", "lost"})


class DeadlinePassed(AssertionError):
    """What was waited for did not come; the message holds what was seen last."""


def wait_until(seen: Callable[[], T], wanted: Callable[[T], bool], seconds: float, what: str) -> T:
    """Asks ``seen`` until ``wanted`` holds, and returns what was seen then.

    :raises DeadlinePassed: after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not wanted(last := seen()):
        if time.monotonic() > deadline:
            raise DeadlinePassed(f"not within {seconds} s: {what}; last seen: {str(last)[:2000]}")
        time.sleep(0.1)  # paces the looks at a state on the other side; the condition decides, not the time
    return last


class Api:
    """The controller at ``url``, as the holder of ``token``."""

    def __init__(self, url: str, ca_file: Path, token: str | None) -> None:
        self.url = url
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        context = ssl.create_default_context(cafile=str(ca_file))
        self.http = httpx2.Client(
            base_url=url, verify=context, headers=headers, timeout=httpx2.Timeout(45), trust_env=False
        )

    def close(self) -> None:
        self.http.close()

    def call(
        self, method: str, path: str, status: int, body: JSON | None = None, **params: str | int
    ) -> JSON:
        """One call that must answer with ``status``; its JSON."""
        answer = self.http.request(method, path, json=body, params=params)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text[:2000]}"
        document: JSON = answer.json()
        return document

    def start(self, worker_id: str | None = None, **spec: Any) -> JSON:
        path = "/v1/jobs" if worker_id is None else f"/v1/workers/{worker_id}/jobs"
        return self.call("POST", path, 201, spec)

    def job(self, job_id: str) -> JSON:
        return self.call("GET", f"/v1/jobs/{job_id}", 200)

    def ended(self, job_id: str, seconds: float = 60) -> JSON:
        """The job at its end."""
        deadline = time.monotonic() + seconds
        while True:
            job = self.call("GET", f"/v1/jobs/{job_id}", 200, wait=10)
            if job["done"]:
                return job
            if time.monotonic() > deadline:
                raise DeadlinePassed(f"not ended within {seconds} s: {job}")

    def run(self, seconds: float = 60, **spec: Any) -> JSON:
        """Starts a job and returns it at its end."""
        return self.ended(self.start(**spec)["job_id"], seconds)

    def running(self, job_id: str, seconds: float = 30) -> JSON:
        """The job once its process exists (or has ended)."""
        return wait_until(
            lambda: self.job(job_id), lambda j: j["state"] not in ("queued", "starting"), seconds, "running"
        )

    def output(self, job_id: str, **query: str | int) -> bytes:
        answer = self.http.get(f"/v1/jobs/{job_id}/output", params=query)
        assert answer.status_code == 200, f"{answer.status_code} {answer.text[:2000]}"
        return answer.content

    def read_first(self, job_id: str, count: int, **query: str | int) -> bytes:
        """The first ``count`` bytes of a followed output, which is then left."""
        data = b""
        params = {"follow": "true", **query}
        with self.http.stream("GET", f"/v1/jobs/{job_id}/output", params=params) as answer:
            assert answer.status_code == 200, answer.read()
            for chunk in answer.iter_raw():
                data += chunk
                if len(data) >= count:
                    break
        return data

    def stop(self, job_id: str, **body: Any) -> JSON:
        return self.call("POST", f"/v1/jobs/{job_id}/stop", 200, body)

    def workers(self, state: str | None = None) -> list[JSON]:
        params = {} if state is None else {"state": state}
        found: list[JSON] = self.call("GET", "/v1/workers", 200, None, **params)["workers"]
        return found

    def ready(self) -> set[str]:
        """The ids of the ready workers."""
        return {w["worker_id"] for w in self.workers() if w["state"] == "ready"}

    def wait_ready(self, count: int, seconds: float = 60) -> set[str]:
        """The ids of exactly ``count`` ready workers."""
        return wait_until(self.ready, lambda ids: len(ids) == count, seconds, f"{count} ready workers")
