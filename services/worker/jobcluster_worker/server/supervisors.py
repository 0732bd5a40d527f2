"""The server's connections to the launcher and its supervisors: who has room, who holds what, who is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

import structlog

from jobcluster_worker.backoff import delays
from jobcluster_worker.launcher.shapes import Spec, TaskKey, Usage, id_of, key_of, new_task
from jobcluster_worker.launcher.wire import Message
from jobcluster_worker.server.crew import Crew, Supervisor
from jobcluster_worker.server.peer import Peer, PeerLost
from jobcluster_worker.server.tasks import TaskTable

log = structlog.get_logger()

HELLO_SECONDS = 1.0
START_SECONDS = 30.0
CALL_SECONDS = 10.0
ADD_SECONDS = 10.0
IDLE_SECONDS = 10.0
"""How long a supervisor beyond the one that is kept may be empty before it is sent away."""


class Claimed(Exception):
    """The attempt was started, stopped or cancelled here before."""


class StartRefused(Exception):
    """The attempt was not started by this request; ``code`` says why, for programs."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class NoSupervisor(Exception):
    """None has room, and the launcher makes none."""


class Supervisors:
    """Owns the connections. ``on_lost`` is awaited with a dead supervisor's name and the tasks it held."""

    def __init__(
        self,
        run_directory: Path,
        table: TaskTable,
        on_lost: Callable[[str, list[TaskKey]], Coroutine[Any, Any, None]],
        capacity: int,
    ) -> None:
        """``capacity`` is how many tasks a supervisor takes; its hello may say another number."""
        self._run_directory = run_directory
        self._table = table
        self._on_lost = on_lost
        self._capacity = capacity
        self.enforced: dict[str, Any] = {}
        """By resource, as the launcher tells it."""
        self._launcher: Peer | None = None
        self._listed = asyncio.Event()
        self._crew = Crew()
        self._gone: set[str] = set()
        self._adding = asyncio.Lock()
        self._in_flight: set[TaskKey] = set()
        self._jobs: set[asyncio.Task[None]] = set()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._closing = False

    @property
    def names(self) -> set[str]:
        """The supervisors that live."""
        return set(self._crew)

    @property
    def in_flight(self) -> set[TaskKey]:
        """Starts that somebody waits for; what comes of them is that one's care."""
        return self._in_flight

    @property
    def ungreeted(self) -> set[str]:
        """Those that have not answered yet: what they hold is not known."""
        return {name for name, supervisor in self._crew.items() if not supervisor.greeted.is_set()}

    async def open(self) -> None:
        """Connects to all, in parallel; who does not answer within a second is waited for in the background.

        :raises PeerLost: if the launcher does not answer
        :raises OSError: if nobody listens at the launcher's socket
        """
        self._launcher = Peer.connect(
            self._run_directory / "launcher.sock", self._from_launcher, self._launcher_closed
        )
        self._launcher.send({"op": "hello"})
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._listed.wait()
        except TimeoutError:
            raise PeerLost("the launcher does not answer") from None
        greetings = [asyncio.ensure_future(s.greeted.wait()) for s in self._crew.values()]
        if greetings:
            _, late = await asyncio.wait(greetings, timeout=HELLO_SECONDS)
            for greeting in late:
                greeting.cancel()
        for name in self.ungreeted:
            log.warning("supervisor_silent", supervisor=name)

    def identify(self, worker_id: str) -> None:
        """Lets launcher and supervisors say in their logs whose they are."""
        if self._launcher is not None:
            with contextlib.suppress(PeerLost):
                self._launcher.send({"op": "identify", "worker_id": worker_id})

    async def close(self) -> None:
        """Closes the connections; the supervisors live on."""
        self._closing = True
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        for job in tuple(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        for peer in (self._launcher, *(s.peer for s in self._crew.values())):
            if peer is not None:
                peer.close()

    async def start(self, spec: Spec) -> None:
        """Starts a task: when this returns, a supervisor has claimed it, and the table has it.

        :raises Claimed: if it was claimed before
        :raises StartRefused: if the supervisor refuses it for good
        :raises NoSupervisor: if no supervisor has room
        :raises PeerLost: if it is not known whether it was claimed
        """
        key = key_of(spec)
        self._in_flight.add(key)
        try:
            while not await self._start_on(await self._with_room(), key, spec):
                pass
        finally:
            self._in_flight.discard(key)

    async def _start_on(self, supervisor: Supervisor, key: TaskKey, spec: Spec) -> bool:
        """False if this supervisor cannot have it, and another may."""
        if supervisor.peer is None:
            return False
        supervisor.starting += 1
        supervisor.idle_since = None
        # Known before it is sent: its end may come back together with the answer, and a stop at any time.
        self._table.update(new_task(key, "starting"), supervisor.name)
        try:
            reply = await supervisor.peer.request({"op": "start", "spec": spec}, START_SECONDS)
        except PeerLost:
            return await self._claimed_after_all(supervisor, key)
        finally:
            supervisor.starting -= 1
            self._look_for_idle()
        if reply.get("ok"):
            return True
        self._table.forget(key)
        code, text = reply.get("code"), str(reply.get("error") or reply.get("code"))
        if code == "claimed":
            if reply.get("task") is not None:
                self._take(supervisor, reply["task"])
            raise Claimed(text)
        if code not in ("full", "retired"):
            raise StartRefused(str(code), text)
        supervisor.refuses = True
        supervisor.leaving = supervisor.leaving or code == "retired"
        return False

    async def _claimed_after_all(self, supervisor: Supervisor, key: TaskKey) -> bool:
        """A lost connection leaves it open whether a start was claimed: the next hello, or the claims, tell."""
        if supervisor.peer is not None:
            raise PeerLost(f"supervisor {supervisor.name} does not answer")
        try:
            async with asyncio.timeout(START_SECONDS):
                await supervisor.greeted.wait()
        except TimeoutError:
            raise PeerLost(f"supervisor {supervisor.name} cannot be reached") from None
        return self._table.get(key) is not None

    async def stop(self, key: TaskKey, holder: str, signal: str, grace_seconds: float, reason: str) -> None:
        """Has one task stopped; its end comes as a change.

        :raises PeerLost: if the supervisor does not answer
        """
        order = {"op": "stop", "task": id_of(key), "signal": signal, "grace_seconds": grace_seconds}
        await self._peer(holder).request({**order, "reason": reason}, CALL_SECONDS)

    def stop_all(self, signal: str, grace_seconds: float, reason: str) -> None:
        """Has every task stopped, on all supervisors that can be reached."""
        order = {"op": "stop_all", "signal": signal, "grace_seconds": grace_seconds, "reason": reason}
        for supervisor in self._crew.values():
            supervisor.tell(order)

    async def usage(self, key: TaskKey, holder: str) -> Usage | None:
        """What a task uses now; None if nobody can tell in time."""
        try:
            reply = await self._peer(holder).request({"op": "usage", "task": id_of(key)}, HELLO_SECONDS)
        except PeerLost:
            return None
        usage: Usage | None = reply.get("usage")
        return usage

    def acknowledge(self, holder: str, keys: Iterable[TaskKey]) -> None:
        """Tells a supervisor that these ends are durable: it forgets them."""
        supervisor = self._crew.get(holder)
        if supervisor is None:
            return
        known = list(keys)
        supervisor.tell({"op": "ack", "tasks": [id_of(key) for key in known]})
        supervisor.unacknowledged.difference_update(known)
        self._look_for_idle()

    # -- who has room

    async def _with_room(self) -> Supervisor:
        found = self._crew.pick()
        if found is not None:
            return found
        async with self._adding:
            # Another start may have had one made while this one waited.
            found = self._crew.pick()
            while found is None:
                await self._add()
                found = self._crew.pick()
            return found

    async def _add(self) -> None:
        if self._launcher is None:
            raise NoSupervisor("the launcher is gone")
        self._listed.clear()
        try:
            self._launcher.send({"op": "add_supervisor"})
            async with asyncio.timeout(ADD_SECONDS):
                await self._listed.wait()
                # Not for one that was silent before: the new one may have greeted already.
                if self._crew.pick() is None:
                    await self._crew.any_greeting()
        except (TimeoutError, PeerLost) as error:
            raise NoSupervisor(f"the launcher made none: {error}") from None

    def _look_for_idle(self) -> None:
        """Sends away who has been empty for long, beyond one. At most one timer runs."""
        now = asyncio.get_running_loop().time()
        extra = self._crew.extra(now)
        for supervisor in extra:
            if now - (supervisor.idle_since or now) >= IDLE_SECONDS:
                supervisor.leaving = True
                supervisor.tell({"op": "retire"})
        if extra and self._idle_timer is None and not self._closing:
            self._idle_timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._idle_elapsed)

    def _idle_elapsed(self) -> None:
        self._idle_timer = None
        self._look_for_idle()

    # -- what they say

    def _from_launcher(self, message: Message) -> None:
        if message.get("event") == "supervisors":
            self.enforced = message.get("enforced") or self.enforced
            for name in message["names"]:
                if name not in self._crew and name not in self._gone:
                    self._crew[name] = Supervisor(name, self._capacity)
                    self._connect(self._crew[name])
            self._listed.set()
        elif message.get("event") == "supervisor_ended":
            self._supervisor_ended(message["name"], [key_of(task) for task in message.get("tasks", ())])

    def _launcher_closed(self) -> None:
        self._launcher = None
        if not self._closing:
            log.error("launcher_lost")

    def _connect(self, supervisor: Supervisor) -> None:
        try:
            supervisor.peer = Peer.connect(
                self._run_directory / f"{supervisor.name}.sock",
                lambda message: self._from_supervisor(supervisor, message),
                lambda: self._connection_lost(supervisor),
            )
            supervisor.peer.send({"op": "hello"})
        except (OSError, PeerLost) as error:
            log.warning("supervisor_unreachable", supervisor=supervisor.name, reason=str(error))
            self._run(self._reconnect(supervisor))

    async def _reconnect(self, supervisor: Supervisor) -> None:
        """Until the launcher says that it is dead: only the launcher knows."""
        for wait in delays(0.05, 2.0):
            await asyncio.sleep(wait)
            if self._crew.get(supervisor.name) is not supervisor:
                return
            if supervisor.peer is None or supervisor.peer.closed:
                self._connect(supervisor)
                return

    def _connection_lost(self, supervisor: Supervisor) -> None:
        supervisor.peer = None
        supervisor.greeted.clear()
        if not self._closing and self._crew.get(supervisor.name) is supervisor:
            self._run(self._reconnect(supervisor))

    def _from_supervisor(self, supervisor: Supervisor, message: Message) -> None:
        match message.get("event"):
            case "task":
                self._take(supervisor, message["task"])
            case "hello":
                supervisor.capacity = int(message.get("capacity") or supervisor.capacity)
                for task in (*message.get("tasks", ()), *message.get("ends", ())):
                    self._take(supervisor, task)
                self._drop_guesses(supervisor, message)
                supervisor.greeted.set()
                log.info("supervisor_connected", supervisor=supervisor.name, tasks=len(supervisor.live))

    def _take(self, supervisor: Supervisor, task: Mapping[str, Any]) -> None:
        key = key_of(task)
        self._table.update(task, supervisor.name)  # type: ignore[arg-type]
        entry = self._table.get(key)
        if entry is None or entry.ended:
            supervisor.live.discard(key)
            supervisor.refuses = False
            if entry is not None:
                supervisor.unacknowledged.add(key)
            self._look_for_idle()
        else:
            supervisor.live.add(key)

    def _drop_guesses(self, supervisor: Supervisor, hello: Message) -> None:
        """What the table held for it and it does not hold was acknowledged before this server began."""
        held = {key_of(task) for task in (*hello.get("tasks", ()), *hello.get("ends", ()))}
        for key in self._table.held_by(supervisor.name):
            if key not in held:
                self._table.forget(key)
                supervisor.live.discard(key)
                supervisor.unacknowledged.discard(key)

    def _supervisor_ended(self, name: str, keys: list[TaskKey]) -> None:
        self._gone.add(name)
        supervisor = self._crew.pop(name, None)
        held = list(dict.fromkeys([*keys, *self._table.held_by(name)]))
        self._table.orphan(held)
        if supervisor is not None and supervisor.peer is not None:
            supervisor.peer.close()
        if held or (supervisor is not None and not supervisor.leaving):
            log.warning("supervisor_lost", supervisor=name, tasks=len(held))
        self._run(self._settle(name, held, supervisor))

    async def _settle(self, name: str, held: list[TaskKey], supervisor: Supervisor | None) -> None:
        await self._on_lost(name, held)
        if supervisor is not None:
            # Whoever waits for its next hello finds the table settled.
            supervisor.greeted.set()

    def _peer(self, holder: str) -> Peer:
        supervisor = self._crew.get(holder)
        if supervisor is None or supervisor.peer is None:
            raise PeerLost(f"supervisor {holder} cannot be reached")
        return supervisor.peer

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        if self._closing:
            work.close()
            return
        job = asyncio.get_running_loop().create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._finished)

    def _finished(self, job: asyncio.Task[None]) -> None:
        self._jobs.discard(job)
        if not job.cancelled() and (error := job.exception()) is not None:
            log.error("server_fault", exc_info=error)
