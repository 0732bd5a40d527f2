"""A few threads that do what may block: preparing and executing starts. Stdlib only."""

from __future__ import annotations

import errno
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
        """Runs ``work`` in some thread, in the order given; it must not raise.

        :raises OSError: there is no thread and none can be made; the work is not done.
        """
        with self._lock:
            grow = self._idle <= self._work.qsize() and self._count < self._limit
        if grow:
            self._grow()
        self._work.put(work)

    def _grow(self) -> None:
        try:
            threading.Thread(target=self._run, name=f"starter-{self._count + 1}", daemon=True).start()
        except RuntimeError as error:
            # The others do it, later.
            if not self._count:
                raise BlockingIOError(errno.EAGAIN, f"thread: {error}") from error
        else:
            self._count += 1

    def _run(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            work = self._work.get()
            with self._lock:
                self._idle -= 1
            work()
