"""The nemesis: kills and freezes the workers' servers, by a seed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter

from tests.integration.cluster import Cluster, Service

# Seconds a server stays stopped. The longer one is past `unreachable`, and well within the lease.
SHORT_STOP = (0.2, 5.0)
LONG_STOP = (11.0, 13.0)


class Nemesis:
    """One fault after the other until ``until`` (monotonic seconds); never touches a launcher or supervisor."""

    def __init__(self, cluster: Cluster, seed: int, until: float) -> None:
        self.done: Counter[str] = Counter()
        self.errors: list[str] = []
        self._cluster, self._until = cluster, until
        self._rng = random.Random(f"{seed}/nemesis")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join(LONG_STOP[1] + 60)

    def _run(self) -> None:
        try:
            while time.monotonic() < self._until:
                self._ended.wait(self._rng.uniform(0.3, 2.5))
                self._strike(self._rng.choice(self._cluster.workers))
        except Exception as error:  # whatever it is, the run is not clean, and the test must say so
            self.errors.append(f"nemesis: {error!r}")

    def _strike(self, worker: Service) -> None:
        what = self._rng.choices(("kill", "stop", "long_stop"), weights=(5, 4, 1))[0]
        server = self._cluster.server_pid(worker)
        self.done[what] += 1
        if what == "kill":
            os.kill(server, signal.SIGKILL)
            return
        seconds = self._rng.uniform(*(LONG_STOP if what == "long_stop" else SHORT_STOP))
        os.kill(server, signal.SIGSTOP)
        try:
            self._ended.wait(seconds)
        finally:
            os.kill(server, signal.SIGCONT)
