"""The supervisors of a launcher: forked from it (it has one thread), told what to do when there is no server.

Stdlib only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

from jobcluster_worker.launcher import processes
from jobcluster_worker.launcher.loop import hold_signals, release_signals
from jobcluster_worker.launcher.notes import identify, note, note_fault
from jobcluster_worker.launcher.rundirectory import RunDirectory
from jobcluster_worker.launcher.start import Site
from jobcluster_worker.launcher.supervisor import Post, Supervisor
from jobcluster_worker.launcher.uids import Block, Slice
from jobcluster_worker.launcher.wire import Channel, Message, listen


@dataclass(frozen=True, slots=True)
class Member:
    """A living supervisor. It sees the end of ``control`` when the launcher dies."""

    post: Post
    pid: int
    control: Channel


class Crew:
    """Names are given once in a launcher's life: s1, s2, …"""

    def __init__(
        self,
        site: Site,
        run_directory: RunDirectory,
        incarnation: str,
        block: Block | None,
        close_in_child: Callable[[], None],
    ) -> None:
        self._site = site
        self._run_directory = run_directory
        self._incarnation = incarnation
        self._block = block
        self._close_in_child = close_in_child
        self._members: dict[str, Member] = {}
        self._made = 0
        # Without a leaf or a uid a task is what descends from its supervisor: only one of them, then.
        alone = site.tree is None and block is None
        self.tasks_per_supervisor = 1 if alone else max(1, min(site.bootstrap.tasks_per_supervisor, 63))

    @property
    def names(self) -> list[str]:
        return list(self._members)

    @property
    def pids(self) -> set[int]:
        return {member.pid for member in self._members.values()}

    def __bool__(self) -> bool:
        return bool(self._members)

    def add(self) -> Member:
        """Forks a supervisor; its socket listens already when this returns.

        :raises OSError, NoUids: it cannot be made, and nothing of it is left.
        """
        uids = self._block.take_slice() if self._block is not None else None
        name = f"s{self._made + 1}"
        path = self._run_directory.supervisor_socket(name)
        post = Post(name, self._incarnation, path, self.tasks_per_supervisor, uids)
        with contextlib.ExitStack() as undo:
            if self._block is not None and uids is not None:
                undo.callback(self._block.give_back, uids)
            listener = listen(path)
            undo.callback(listener.close)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(theirs.close)
            undo.callback(ours.close)
            hold_signals()
            undo.callback(release_signals)
            pid = os.fork()
            if pid == 0:
                self._become(post, listener, ours, theirs)
            undo.pop_all()
        release_signals()
        listener.close()
        theirs.close()
        self._made += 1
        member = self._members[name] = Member(post, pid, Channel(ours))
        note("supervisor_started", supervisor=name, pid=pid)
        return member

    def find(self, pid: int) -> Member | None:
        return next((member for member in self._members.values() if member.pid == pid), None)

    def remove(self, member: Member) -> None:
        """It is dead. Its uids stay taken until give_back."""
        del self._members[member.post.name]
        member.control.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(member.post.socket_path)

    def give_back(self, uids: Slice | None) -> None:
        if self._block is not None and uids is not None:
            self._block.give_back(uids)

    def tell_all(self, message: Message) -> None:
        """Never blocks; one that does not read any more is killed in the end."""
        for member in self._members.values():
            try:
                member.control.queue(message)
                member.control.flush()
            except OSError as error:
                note("connection_dropped", "warning", supervisor=member.post.name, reason=str(error))

    def kill(self) -> None:
        for pid in self.pids:
            processes.send(pid, signal.SIGKILL)

    def _become(
        self, post: Post, listener: socket.socket, ours: socket.socket, theirs: socket.socket
    ) -> None:
        """The child's life; it never returns."""
        code = 1
        try:
            os.setsid()
            identify(process="supervisor", supervisor=post.name)
            ours.close()
            self._close_in_child()
            for member in self._members.values():
                member.control.close()
            processes.become_subreaper()
            if self._site.tree is not None:
                self._site.tree.enter_supervisors()
            Supervisor(post, self._site, listener, theirs).run()
            code = 0
        except BaseException as error:
            note_fault(error)
        finally:
            os._exit(code)
