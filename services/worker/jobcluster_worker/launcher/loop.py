"""One thread's event loop: descriptors by epoll, timers on the monotonic clock, signals, calls from other threads.

It sleeps without limit when there is no timer: an idle supervisor is never woken. Stdlib only.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable

from jobcluster_worker.launcher.notes import note_fault

Callback = Callable[[], None]

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
URGENT = select.EPOLLPRI

_CANCELLED_TIMERS = 64
_HELD_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})


def hold_signals() -> None:
    """Until they are released: whoever is not ready for them must neither die of them, nor lose them, nor, just
    forked, tell its parent's loop of its own.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_SIGNALS)


def release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_SIGNALS)


class Timer:
    """A call at a time; cancel is final."""

    __slots__ = ("_cancelled", "callback")

    def __init__(self, callback: Callback, cancelled: Callback) -> None:
        self.callback: Callback | None = callback
        self._cancelled = cancelled

    def cancel(self) -> None:
        if self.callback is not None:
            self.callback = None
            self._cancelled()


class Loop:
    """Callbacks run one after the other; one that raises is logged on stderr, and the loop goes on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._cancelled = 0
        self._posted: deque[Callback] = deque()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._signals: dict[int, Callback] = {}
        self._wakeup, self._signalled = socket.socketpair()
        self.after_events: Callback | None = None
        self._running = True
        self._set_up()

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Calls back with the epoll events whenever there are some (level-triggered)."""
        known = fd in self._watched
        self._watched[fd] = callback
        if known:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """Must come before the descriptor is closed; an unknown one is passed over."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def at(self, when: float, callback: Callback) -> Timer:
        """Calls back at ``when`` on this loop's clock, in seconds."""
        timer = Timer(callback, self._count_cancelled)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    @property
    def timers(self) -> int:
        """How many are kept, cancelled ones among them."""
        return len(self._timers)

    def _count_cancelled(self) -> None:
        """A timeout of days, cancelled after a second, must not be kept for days."""
        self._cancelled += 1
        if self._cancelled > _CANCELLED_TIMERS and self._cancelled > len(self._timers) // 2:
            self._timers = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def after(self, seconds: float, callback: Callback) -> Timer:
        return self.at(self.clock() + seconds, callback)

    def post(self, callback: Callback) -> None:
        """From any thread: calls back in the loop's thread."""
        self._posted.append(callback)
        os.eventfd_write(self._event, 1)

    def on_signal(self, number: int, callback: Callback) -> None:
        """Calls back in the loop (not in the handler) when the signal has come; repeats may coalesce."""
        self._signals[number] = callback
        signal.signal(number, _nothing)

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        """Runs until stop."""
        while self._running:
            self.step()

    def step(self) -> None:
        """Waits once, and calls back what is due."""
        for fd, events in self._poll():
            # A callback of this very round may have unwatched it.
            callback = self._watched.get(fd)
            if callback is not None:
                _guard(callback, events)
        self._run_timers()
        if self.after_events is not None:
            _guard(self.after_events)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._epoll.close()
        self._wakeup.close()
        self._signalled.close()
        os.close(self._event)

    def _set_up(self) -> None:
        self._wakeup.setblocking(False)
        self._signalled.setblocking(False)
        signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)
        self.watch(self._event, READ, self._run_posted)
        self.watch(self._wakeup.fileno(), READ, self._run_signals)

    def _poll(self) -> list[tuple[int, int]]:
        timeout = None
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
            self._cancelled = max(0, self._cancelled - 1)
        if self._timers:
            timeout = max(0.0, self._timers[0][0] - self.clock())
        return self._epoll.poll(timeout)

    def _run_timers(self) -> None:
        now = self.clock()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is None:
                self._cancelled = max(0, self._cancelled - 1)
            else:
                _guard(callback)

    def _run_posted(self, _events: int) -> None:
        os.eventfd_read(self._event)
        while self._posted:
            _guard(self._posted.popleft())

    def _run_signals(self, _events: int) -> None:
        try:
            numbers = self._wakeup.recv(4096)
        except BlockingIOError:
            return
        # SIGTERM twice in one read is a second SIGTERM; for children one look is enough.
        terms = [number for number in numbers if number != signal.SIGCHLD]
        for number in [*terms, signal.SIGCHLD] if len(terms) < len(numbers) else terms:
            callback = self._signals.get(number)
            if callback is not None:
                _guard(callback)


def _nothing(_number: int, _frame: object) -> None:
    """Python calls a handler at some later point; the wake-up descriptor has told the loop already."""


def _guard(callback: Callable[..., None], *args: int) -> None:
    # One task's fault (a full disk, a vanished directory) must not take its neighbours down.
    try:
        callback(*args)
    except Exception as error:
        note_fault(error)
