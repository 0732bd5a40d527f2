"""A few threads that do what may block: preparing and executing starts. Stdlib only."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

THREADS = 8


class Starters:
    """Threads are made when work waits and all are busy, up to a bound; idle ones sleep without waking.

    The queue is bounded by its caller: a supervisor takes only so many tasks.
    """

    def __init__(self, threads: int = THREADS) -> None:
        self._limit = threads
        self._count = 0
        self._idle = 0
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def submit(self, work: Callable[[], None]) -> None:
        """Runs ``work`` in some thread, in the order given; it must not raise."""
        with self._lock:
            grow = self._idle <= self._work.qsize() and self._count < self._limit
            self._count += grow
        self._work.put(work)
        if grow:
            threading.Thread(target=self._run, name=f"starter-{self._count}", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            work = self._work.get()
            with self._lock:
                self._idle -= 1
            work()
