"""A supervisor's side of the server's connection: it vanishes and comes back, and may be slow. Stdlib only.

Task events coalesce to each task's newest state, so what waits for a slow server is bounded by the number of tasks;
replies are bounded because commands are not read while too much waits.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from jobcluster_worker.launcher.loop import READ, WRITE, Loop
from jobcluster_worker.launcher.notes import note
from jobcluster_worker.launcher.shapes import Task, TaskKey
from jobcluster_worker.launcher.wire import Channel, Message, ProtocolError

_EVENTS_BACKLOG = 256 * 1024
_READ_BACKLOG = 1024 * 1024
_ACCEPT_AGAIN_SECONDS = 1.0

OnMessage = Callable[[Message], None]


class Link:
    """Listens; the newest connection wins. Nothing is told to a connection before it has said hello."""

    def __init__(self, loop: Loop, listener: socket.socket, on_message: OnMessage) -> None:
        self._loop = loop
        self._on_message = on_message
        self._channel: Channel | None = None
        self.connection = 0
        """Counts the connections; 0 before the first."""
        self._greeted = False
        self._mask = 0
        self._changed: dict[TaskKey, Task] = {}
        self._listener = listener
        self._watch_listener()

    @property
    def idle(self) -> bool:
        """Whether everything was sent (or nobody is there to be told)."""
        return self._channel is None or not (self._channel.backlog_bytes or self._changed)

    def listen(self, listener: socket.socket) -> None:
        """Takes connections from another socket from now on (the old one's path is gone)."""
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        self._listener = listener
        self._watch_listener()

    def greet(self, hello: Message) -> None:
        """Answers a hello: its snapshot contains whatever waited to be told."""
        self._changed.clear()
        self._greeted = True
        self.reply(hello)

    def tell(self, key: TaskKey, task: Task) -> None:
        """Sends a task's newest state, in time; a state not sent yet is replaced."""
        if self._greeted:
            # Put last, so that what is told in one turn keeps the order in which it happened.
            self._changed.pop(key, None)
            self._changed[key] = task

    def reply(self, message: Message) -> None:
        if self._channel is not None:
            try:
                self._channel.queue(message)
            except OSError as error:
                self._drop(f"queue: {error}")

    def flush(self) -> None:
        """At the end of a loop's turn: sends what the socket takes."""
        channel = self._channel
        if channel is None:
            return
        try:
            while True:
                self._queue_changes(channel)
                if not channel.flush() or not self._changed:
                    break
        except OSError as error:
            self._drop(str(error))
            return
        self._watch(channel)

    def close(self) -> None:
        self._drop("")
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()

    def abandon(self) -> None:
        """In a forked child: closes what it inherited, and leaves the parent's epoll alone."""
        self._listener.close()
        if self._channel is not None:
            self._channel.close()

    def _queue_changes(self, channel: Channel) -> None:
        while self._changed and channel.backlog_bytes < _EVENTS_BACKLOG:
            key = next(iter(self._changed))
            channel.queue({"event": "task", "task": self._changed.pop(key)})

    def _watch(self, channel: Channel) -> None:
        reading = READ if channel.backlog_bytes < _READ_BACKLOG else 0
        mask = reading | (WRITE if channel.backlog_bytes else 0)
        if mask != self._mask:
            self._mask = mask
            self._loop.watch(channel.fileno(), mask, self._ready)

    def _watch_listener(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.watch(self._listener.fileno(), READ, self._accept)

    def _accept(self, _events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            # Out of descriptors: it stays readable, and the loop must not spin on it.
            note("connection_dropped", "warning", reason=f"accept: {error}")
            self._loop.unwatch(self._listener.fileno())
            self._loop.after(_ACCEPT_AGAIN_SECONDS, self._watch_listener)
            return
        self._drop("")
        self.connection += 1
        self._channel = Channel(sock)
        self._mask = READ
        self._loop.watch(sock.fileno(), READ, self._ready)

    def _ready(self, events: int) -> None:
        channel = self._channel
        # Writing is flush's, at the end of this turn.
        if channel is None or not events & ~WRITE:
            return
        try:
            messages = channel.receive()
        except (OSError, ProtocolError) as error:
            self._drop(str(error))
            return
        if messages is None:
            self._drop("")
            return
        for message in messages:
            self._on_message(message)

    def _drop(self, why: str) -> None:
        if self._channel is None:
            return
        if why:
            note("connection_dropped", "warning", reason=why)
        self._loop.unwatch(self._channel.fileno())
        self._channel.close()
        self._channel = None
        self._greeted = False
        self._changed.clear()
