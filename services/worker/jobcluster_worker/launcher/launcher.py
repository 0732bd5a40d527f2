"""The first process of a worker: starts the server and the supervisors, reaps, outlives them all. Stdlib only.

It is PID 1 of a container, or a subreaper. One thread, and nothing in it can block: whatever happens to the server,
a supervisor or the run directory, it goes on, and at SIGTERM it gets every task stopped with or without them.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import Final

from jobcluster_worker.launcher import processes
from jobcluster_worker.launcher.containment import kill_below
from jobcluster_worker.launcher.crew import Crew, Member
from jobcluster_worker.launcher.link import Link
from jobcluster_worker.launcher.loop import Loop, release_signals
from jobcluster_worker.launcher.lost import LostSupervisor
from jobcluster_worker.launcher.notes import identify, note
from jobcluster_worker.launcher.rundirectory import RunDirectory
from jobcluster_worker.launcher.serverprocess import ServerProcess
from jobcluster_worker.launcher.start import Site
from jobcluster_worker.launcher.uids import Block, NoUids
from jobcluster_worker.launcher.wire import Message, listen
from jobcluster_worker.sandbox import confine

# A worker's exit is due within drain + grace + handover + 5 s of its SIGTERM. A server that has not had the tasks
# stopped this long after its drain is taken for hung; after the last one everything is killed.
_TAKE_OVER_SECONDS: Final = 1.5
_LAST_SECONDS: Final = 3.5
_LAST_WORDS_SECONDS: Final = 0.8
_FIRST_LOOK_SECONDS: Final = 0.01
_LATER_LOOK_SECONDS: Final = 0.5
_EXIT_CONFIGURATION: Final = 2


class Launcher:
    """``run`` returns the exit code: 0, or 2 when the server refuses its configuration."""

    def __init__(
        self, site: Site, run_directory: RunDirectory, incarnation: str, block: Block | None, lock_fd: int
    ) -> None:
        self._site = site
        self._bootstrap = site.bootstrap
        self._run_directory = run_directory
        self._incarnation = incarnation
        self._lock_fd = lock_fd
        self._loop = Loop()
        self._link = Link(self._loop, listen(run_directory.launcher_socket), self._on_message)
        self._crew = Crew(site, run_directory, incarnation, block, self._close_in_child)
        argv = [
            *site.bootstrap.server_argv,
            *("--run-directory", str(run_directory.path)),
            *("--incarnation", incarnation),
            *("--launcher-pid", str(os.getpid())),
        ]
        self._server = ServerProcess(self._loop, argv, site.bootstrap.log_file, self._look_at_run_directory)
        self._lost: list[LostSupervisor] = []
        self._served = False
        self._terms = 0
        self._stopping = False
        self._taken_over = False
        self._exit_code = 0

    def run(self) -> int:
        self._loop.on_signal(signal.SIGTERM, self._on_term)
        self._loop.on_signal(signal.SIGINT, self._on_term)
        self._loop.on_signal(signal.SIGHUP, self._on_term)
        self._loop.on_signal(signal.SIGCHLD, self._reap)
        release_signals()
        self._loop.after_events = self._link.flush
        note("launcher_started", pid=os.getpid(), incarnation=self._incarnation)
        self._crew.add()
        self._server.start()
        self._loop.run()
        kill_below()
        note("launcher_stopped", exit_code=self._exit_code)
        return self._exit_code

    def _close_in_child(self) -> None:
        """In a new supervisor: nothing of the launcher's may live on in it."""
        self._link.abandon()
        self._loop.close()
        # A supervisor that outlives the launcher for a moment must not keep the next one from starting.
        os.close(self._lock_fd)

    # --- the server's requests

    def _on_message(self, message: Message) -> None:
        if message.get("op") == "identify":
            # Only the server can know: it has the certificate.
            identify(worker_id=message["worker_id"])
            self._crew.tell_all(message)
        elif message.get("op") == "hello":
            self._served = True
            self._tell_names()
        elif message.get("op") == "add_supervisor":
            try:
                self._crew.add()
            except (OSError, NoUids) as error:
                # No answer: the server gives the start up after its deadline, and may ask again.
                note("supervisor_lost", "error", reason=f"cannot be made: {error}")
            else:
                self._tell_names()

    def _tell_names(self) -> None:
        self._link.reply(
            {
                "event": "supervisors",
                # The dead too, as long as something of them lives: their tasks have not ended yet.
                "names": [*self._crew.names, *(lost.post.name for lost in self._lost)],
                "tasks_per_supervisor": self._crew.tasks_per_supervisor,
                "enforced": self._site.enforced,
                "confinement": confine.what_is_enforced(),
            }
        )

    def _look_at_run_directory(self) -> None:
        """Before each start of the server: whoever removed the directory, the new server finds its sockets."""
        if self._run_directory.is_whole():
            return
        self._run_directory.remake()
        self._link.listen(listen(self._run_directory.launcher_socket))
        self._crew.tell_all({"op": "listen"})
        note("run_directory_remade", "warning", file=str(self._run_directory.path))

    # --- children

    def _reap(self) -> None:
        while (pid := processes.next_zombie()) is not None:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            member = self._crew.find(pid)
            if pid == self._server.pid:
                self._server_ended(code)
            elif member is not None:
                self._supervisor_ended(member, code)
        self._exit_if_done()

    def _server_ended(self, code: int) -> None:
        self._server.ended()
        note("server_ended", "info" if code == 0 else "warning", exit_code=code)
        if self._stopping:
            self._take_over()
        elif code == 0:
            # It was drained and deregistered from outside: the worker is done.
            self._begin_stop()
        elif code == _EXIT_CONFIGURATION and not self._served:
            self._exit_code = code
            self._begin_stop()
        else:
            self._server.restart()

    def _supervisor_ended(self, member: Member, code: int) -> None:
        self._crew.remove(member)
        level = "info" if code == 0 else "warning"
        note("supervisor_ended", level, supervisor=member.post.name, exit_code=code)
        lost = LostSupervisor(member.post, self._site)
        self._lost.append(lost)
        self._clear(lost, _FIRST_LOOK_SECONDS, kill=code != 0)

    @property
    def _own(self) -> frozenset[int]:
        return frozenset({self._server.pid, *self._crew.pids})

    def _clear(self, lost: LostSupervisor, wait: float, kill: bool = False) -> None:
        """Kills what a dead supervisor left until nothing is left, then tells. Only that ends it, no fault does."""
        try:
            cleared = lost.clear(self._own, kill)
        except OSError as error:
            note("supervisor_lost", "error", supervisor=lost.post.name, reason=str(error))
            cleared = False
        if not cleared:
            again = min(wait * 2, _LATER_LOOK_SECONDS)
            self._loop.after(wait, partial(self._clear, lost, again))
            return
        self._lost.remove(lost)
        self._crew.give_back(lost.post.uids)
        self._link.reply({"event": "supervisor_ended", "name": lost.post.name, "tasks": lost.tasks})
        self._replace(_FIRST_LOOK_SECONDS)
        self._exit_if_done()

    def _replace(self, wait: float) -> None:
        """There is always one supervisor; where none can be made (out of processes), later."""
        if self._crew or self._stopping:
            return
        try:
            self._crew.add()
        except (OSError, NoUids) as error:
            note("supervisor_lost", "error", reason=f"cannot be made: {error}")
            self._loop.after(wait, partial(self._replace, min(wait * 2, _LATER_LOOK_SECONDS)))
        else:
            self._tell_names()

    # --- the end

    def _on_term(self) -> None:
        self._terms += 1
        if self._terms > 1:
            self._end_at_once()
        elif not self._stopping:
            self._begin_stop()

    def _begin_stop(self) -> None:
        self._stopping = True
        note("launcher_stopping")
        times = self._bootstrap
        last = times.drain_seconds + times.grace_seconds + times.handover_seconds + _LAST_SECONDS
        self._loop.after(last, self._end_at_once)
        self._server.cancel_restart()
        if self._server.pid:
            self._server.signal(signal.SIGTERM)
            self._loop.after(times.drain_seconds + _TAKE_OVER_SECONDS, self._take_over)
        else:
            self._take_over()

    def _take_over(self) -> None:
        """Has the tasks stopped by the supervisors alone; where the server has begun that, it changes nothing.

        Again once the server is gone: nobody else lets the supervisors go then.
        """
        if not self._taken_over:
            self._taken_over = True
            self._stop_tasks("TERM", self._bootstrap.grace_seconds)
        if not self._server.pid:
            self._crew.tell_all({"op": "retire"})
            self._loop.after(self._bootstrap.grace_seconds + _LAST_SECONDS, self._end_at_once)
        self._exit_if_done()

    def _stop_tasks(self, name: str, grace_seconds: float) -> None:
        order = {"signal": name, "grace_seconds": grace_seconds, "reason": "worker_shutdown"}
        self._crew.tell_all({"op": "stop_all", **order})

    def _end_at_once(self) -> None:
        """A second SIGTERM, or no time left: everything is killed, ends are still written."""
        self._stopping = self._taken_over = True
        if self._server.pid:
            note("server_hung", "warning", pid=self._server.pid)
            self._server.signal(signal.SIGKILL)
        self._stop_tasks("KILL", 0.0)
        self._crew.tell_all({"op": "retire"})
        self._loop.after(_LAST_WORDS_SECONDS, self._crew.kill)
        self._loop.after(_LAST_WORDS_SECONDS + 0.4, self._loop.stop)
        self._exit_if_done()

    def _exit_if_done(self) -> None:
        if self._stopping and not self._server.pid and not self._crew and not self._lost:
            self._loop.stop()
