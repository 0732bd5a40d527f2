"""The load: some slots, each of which starts one job after the other, watches and reads it to its end."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from tests.integration.cluster import Cluster
from tests.nemesis.checker import Record
from tests.nemesis.witness import plan

LAST_END_SECONDS = 60.0
LOOK_SECONDS = 0.25


class Load:
    """``slots`` jobs at a time until ``until`` (monotonic seconds); then their ends are awaited."""

    def __init__(self, cluster: Cluster, witness: Path, seed: int, slots: int, until: float) -> None:
        self.records: list[Record] = []
        self.errors: list[str] = []
        self._cluster, self._witness, self._until = cluster, witness, until
        self._threads = [
            threading.Thread(target=self._slot, args=(random.Random(f"{seed}/{slot}"), slot), daemon=True)
            for slot in range(slots)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        deadline = self._until + 2 * LAST_END_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                self.errors.append("a slot of the load hangs")

    def _slot(self, rng: random.Random, slot: int) -> None:
        number = 0
        try:
            with self._cluster.client() as client:
                while time.monotonic() < self._until:
                    number += 1
                    self._one(client, rng, f"{slot}-{number}")
        except Exception as error:  # whatever it is, the run is not clean, and the test must say so
            self.errors.append(f"slot {slot}: {error!r}")

    def _one(self, client: httpx2.Client, rng: random.Random, key: str) -> None:
        chosen = plan(rng)
        answer = self._call(
            lambda: client.post("/v1/jobs", json=chosen.spec(self._witness), headers={"Idempotency-Key": key})
        )
        record = Record(chosen, answer["job_id"])
        record.saw(answer["state"])
        self.records.append(record)
        reader = threading.Thread(target=self._follow, args=(record,), daemon=True)
        reader.start()
        self._watch(client, record)
        reader.join(LAST_END_SECONDS)
        if record.job is not None:
            record.stdout, record.stderr, record.merged = (
                self._snapshot(client, record.job_id, stream) for stream in ("stdout", "stderr", "merged")
            )

    def _call(self, call: Callable[[], httpx2.Response]) -> dict[str, Any]:
        """Until it is answered: what was cut, or refused for now, is asked again."""
        deadline = time.monotonic() + LAST_END_SECONDS
        while True:
            try:
                answer = call()
                if answer.status_code in (200, 201):
                    found: dict[str, Any] = answer.json()
                    return found
                if answer.status_code not in (409, 429, 503):
                    raise AssertionError(f"{answer.status_code}: {answer.text}")
            except httpx2.TransportError:
                pass
            if time.monotonic() > deadline:
                raise AssertionError("no answer")
            time.sleep(LOOK_SECONDS)

    def _watch(self, client: httpx2.Client, record: Record) -> None:
        path = f"/v1/jobs/{record.job_id}"
        began = time.monotonic()
        stopped = record.plan.kind != "stop"
        while time.monotonic() < began + LAST_END_SECONDS:
            job = self._call(lambda: client.get(path))
            record.saw(job["state"])
            if job["done"]:
                record.job = job
                return
            if not stopped and time.monotonic() > began + record.plan.after_seconds:
                self._call(lambda: client.post(f"{path}/stop", json={"grace_seconds": 1}))
                stopped = True
            time.sleep(LOOK_SECONDS)

    def _follow(self, record: Record) -> None:
        """Reads stdout to its end; after each cut from where it stood."""
        deadline = time.monotonic() + 2 * LAST_END_SECONDS
        with self._cluster.client() as client:
            while not record.follow_ended and time.monotonic() < deadline:
                query: dict[str, Any] = {"follow": "true", "stream": "stdout", "offset": len(record.followed)}
                try:
                    with client.stream("GET", f"/v1/jobs/{record.job_id}/output", params=query) as answer:
                        if answer.status_code == 200:
                            for chunk in answer.iter_raw():
                                record.followed += chunk
                            record.follow_ended = True
                        elif answer.status_code != 503:
                            self.errors.append(f"output: {answer.status_code} {answer.read()!r}")
                            return
                except httpx2.TransportError:
                    pass
                if not record.follow_ended:
                    time.sleep(LOOK_SECONDS)

    def _snapshot(self, client: httpx2.Client, job_id: str, stream: str) -> bytes:
        deadline = time.monotonic() + LAST_END_SECONDS
        while True:
            try:
                answer = client.get(f"/v1/jobs/{job_id}/output", params={"stream": stream})
                if answer.status_code == 200:
                    return answer.content
                last = f"{answer.status_code} {answer.text}"
            except httpx2.TransportError as error:
                last = repr(error)
            if time.monotonic() > deadline:
                raise AssertionError(f"output of {job_id}: {last}")
            time.sleep(LOOK_SECONDS)
