"""Runs tasks: takes commands from the server (while there is one) and from the launcher, and tells of every change.

It outlives the server, takes new tasks while it lives, and goes when it is retired and empty. When the launcher dies,
it kills its tasks: nobody could be told of them any more. Stdlib only.
"""

from __future__ import annotations

import signal
import socket
import time
from dataclasses import dataclass

from jobcluster_worker.launcher import processes
from jobcluster_worker.launcher.admission import Admission
from jobcluster_worker.launcher.commands import Refused, checked_spec, seconds
from jobcluster_worker.launcher.ended import Ended
from jobcluster_worker.launcher.ends import EndLog, end_log_path
from jobcluster_worker.launcher.link import Link
from jobcluster_worker.launcher.loop import READ, Loop, release_signals
from jobcluster_worker.launcher.members import Members
from jobcluster_worker.launcher.notes import identify
from jobcluster_worker.launcher.shapes import TaskKey, key_of, new_task, no_usage
from jobcluster_worker.launcher.start import Site, Start
from jobcluster_worker.launcher.starters import Starters
from jobcluster_worker.launcher.task import RunningTask
from jobcluster_worker.launcher.uids import Slice
from jobcluster_worker.launcher.wire import Channel, Message, ProtocolError, listen

_LAST_WORDS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Post:
    """Who a supervisor is: its name in its launcher's incarnation, its socket, how many tasks it takes, its uids."""

    name: str
    incarnation: str
    socket_path: str
    capacity: int
    uids: Slice | None


class Supervisor:
    """Everything but prepare and spawn happens in its loop; ``run`` returns when it is retired and empty."""

    def __init__(self, post: Post, site: Site, listener: socket.socket, control: socket.socket) -> None:
        self.post = post
        self.site = site
        self.log_file = site.bootstrap.log_file
        self.loop = Loop()
        self.starters = Starters()
        self._grace_seconds = site.bootstrap.grace_seconds
        self._tasks: dict[TaskKey, RunningTask] = {}
        self._gates: dict[TaskKey, tuple[int, object]] = {}
        """Who waits for a task at its gate: which connection, and the number of its command."""
        self._retired = False
        """It takes no tasks any more."""
        self._dismissed = False
        """Nor may it stay for anything else."""
        self._terms = 0
        data = site.bootstrap.data_directory
        self._admission = Admission(data, post.incarnation, post.name, post.uids)
        self.members = Members(self.loop, self._admission.uids, self._tasks.values())
        end_log = EndLog(end_log_path(site.bootstrap.state_directory, post.incarnation, post.name))
        self._ended = Ended(self.loop, data, end_log)
        self._link = Link(self.loop, listener, self._on_command)
        self._control: Channel | None = Channel(control)
        self._watch_all(control)

    def run(self) -> None:
        """Until it is retired and has no task; then the server gets a second to read what waits for it.

        An output without its end keeps it too, unless the worker itself ends.
        """
        while self._tasks or not self._retired or (self._ended.unsealed and not self._dismissed):
            self.loop.step()
        last = self.loop.clock() + _LAST_WORDS_SECONDS
        timer = self.loop.at(last, lambda: None)
        while not self._link.idle and self.loop.clock() < last:
            self.loop.step()
        timer.cancel()
        self._ended.close()

    def _watch_all(self, control: socket.socket) -> None:
        self.loop.watch(control.fileno(), READ, self._on_launcher)
        self.loop.on_signal(signal.SIGTERM, self._on_term)
        self.loop.on_signal(signal.SIGCHLD, self.members.child_ended)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        release_signals()
        self.loop.after_events = self._end_turn

    # --- what a task needs of its host

    def prepared(self, task: RunningTask) -> None:
        self._answer_gate(task, {"ok": True, "task": task.record})

    def changed(self, task: RunningTask) -> None:
        self._link.tell(task.key, task.record)

    def ended(self, task: RunningTask) -> None:
        del self._tasks[task.key]
        self._admission.give_back(task.start.uid)
        self._answer_gate(
            task, {"ok": False, "code": task.record["reason"], "error": task.record["error_text"]}
        )
        self._ended.add(task.key, task.record, task.start.log)
        self._link.tell(task.key, task.record)

    def _end_turn(self) -> None:
        try:
            self.members.end_turn()
        finally:
            self._link.flush()

    def _answer_gate(self, task: RunningTask, answer: Message) -> None:
        connection, number = self._gates.pop(task.key, (0, None))
        # Another connection counts its own commands: this number may mean another one there.
        if connection == self._link.connection:
            self._link.reply({"event": "reply", "id": number, **answer})

    # --- the server's commands

    def _on_command(self, message: Message) -> None:
        handlers = {
            "hello": self._hello,
            "start": self._start,
            "commit": self._commit,
            "cancel": self._cancel,
            "stop": self._stop,
            "stop_all": self._stop_all,
            "usage": self._usage,
            "ack": self._ack,
            "retire": self._retire,
        }
        try:
            handler = handlers.get(str(message.get("op")))
            if handler is None:
                raise Refused("invalid", f"no operation {message.get('op')!r}")
            answer = handler(message)
        except Refused as refusal:
            answer = {"ok": False, "code": refusal.code, "error": str(refusal)}
        except OSError as error:
            answer = {"ok": False, "code": "unavailable", "error": str(error)}
        except Exception as error:
            # Whatever it is: the commands that came with this one are still to be carried out.
            answer = {"ok": False, "code": "invalid", "error": f"{type(error).__name__}: {error}"}
        if answer is not None and "id" in message:
            self._link.reply({"event": "reply", "id": message["id"], **answer})

    def _hello(self, _message: Message) -> None:
        self._link.greet(
            {
                "event": "hello",
                "name": self.post.name,
                "capacity": self.post.capacity,
                "tasks": [task.record for task in self._tasks.values()],
                "ends": self._ended.tasks,
            }
        )

    def _start(self, message: Message) -> Message | None:
        spec = checked_spec(message.get("spec"))
        key = key_of(spec)
        known = self._tasks[key].record if key in self._tasks else self._ended.get(key)
        if known is not None:
            return {"ok": False, "code": "claimed", "error": "this supervisor has had it", "task": known}
        if self._retired:
            raise Refused("retired", "this supervisor takes no tasks any more")
        if len(self._tasks) >= self.post.capacity:
            raise Refused("full", f"this supervisor has {self.post.capacity} tasks")
        directory, uid = self._admission.admit(spec, key)
        gated = bool(message.get("prepare_only"))
        start = Start(self.site, spec, key, directory, uid)
        task = self._tasks[key] = RunningTask(self, start, gated, self._grace_seconds)
        self.changed(task)
        task.begin()
        if gated:
            self._gates[key] = (self._link.connection, message.get("id"))
            return None
        return {"ok": True}

    def _commit(self, message: Message) -> Message:
        task = self._tasks.get(key_of(message["task"]))
        if task is None or not task.commit():
            raise Refused("unknown", "no task stands at the gate under that id")
        return {"ok": True}

    def _cancel(self, message: Message) -> Message:
        return self._stop({**message, "grace_seconds": 0.0})

    def _stop(self, message: Message) -> Message:
        key, reason = key_of(message["task"]), str(message.get("reason") or "stopped")
        number = processes.signal_number(message.get("signal") or "TERM")
        grace = seconds(message.get("grace_seconds"), self._grace_seconds)
        task = self._tasks.get(key)
        if task is not None:
            task.stop(number, grace, reason)
            return {"ok": True, "known": True}
        if self._ended.get(key) is not None:
            return {"ok": True, "known": True}
        try:
            self._admission.claim(key)
        except Refused as refusal:
            if refusal.code != "claimed":
                raise
            return {"ok": True, "known": False}
        # It never started here, and now it never will: a tombstone, and an end that can be told.
        record = new_task(key, "stopped")
        record["reason"], record["finished_at_us"] = reason, time.time_ns() // 1000
        self._ended.add(key, record)
        self._link.tell(key, record)
        return {"ok": True, "known": True}

    def _stop_all(self, message: Message) -> Message:
        number = processes.signal_number(message.get("signal") or "TERM")
        grace = seconds(message.get("grace_seconds"), self._grace_seconds)
        for task in list(self._tasks.values()):
            task.stop(number, grace, str(message.get("reason") or "worker_shutdown"))
        return {"ok": True}

    def _usage(self, message: Message) -> Message:
        task = self._tasks.get(key_of(message["task"]))
        if task is None:
            raise Refused("unknown", "no live task under that id")
        return {"ok": True, "usage": task.start.leaf.usage() if task.start.leaf is not None else no_usage()}

    def _ack(self, message: Message) -> Message:
        self._ended.acknowledged([key_of(value) for value in message["tasks"]])
        return {"ok": True}

    def _retire(self, _message: Message) -> Message:
        self._retired = True
        return {"ok": True}

    # --- the launcher

    def _on_launcher(self, _events: int) -> None:
        if self._control is None:
            return
        try:
            messages = self._control.receive()
        except (OSError, ProtocolError):
            messages = None
        if messages is None:
            self._launcher_died()
            return
        for message in messages:
            if message.get("op") == "identify":
                identify(worker_id=message["worker_id"])
            elif message.get("op") == "listen":
                self._link.listen(listen(self.post.socket_path))
            else:
                self._dismissed = self._dismissed or message.get("op") == "retire"
                self._on_command(message)

    def _launcher_died(self) -> None:
        if self._control is not None:
            self.loop.unwatch(self._control.fileno())
            self._control.close()
            self._control = None
        self._retired = self._dismissed = True
        for task in list(self._tasks.values()):
            task.abandon()

    def _on_term(self) -> None:
        self._terms += 1
        self._retired = self._dismissed = True
        grace = self._grace_seconds if self._terms == 1 else 0.0
        for task in list(self._tasks.values()):
            task.stop(signal.SIGTERM, grace, "worker_shutdown")
