"""One task's start in two steps: prepare makes and checks everything, spawn executes. Between them lies the gate.

Both run in a starter thread, not in the loop's: a file system or an exec that hangs holds up this task alone.
Stdlib only.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from jobcluster_worker.launcher import files
from jobcluster_worker.launcher.bootstrap import Bootstrap
from jobcluster_worker.launcher.command import Command, NotExecutable, Place, Resolver
from jobcluster_worker.launcher.environment import environment
from jobcluster_worker.launcher.shapes import Enforcement, Limits, Spec, TaskKey
from jobcluster_worker.output.log import DATA_NAME, OutputLog
from jobcluster_worker.sandbox import confine
from jobcluster_worker.sandbox.spawn import spawn
from jobcluster_worker.templates import (
    TemplateDenied,
    TemplateError,
    TemplateEscapes,
    TemplateNotFound,
    resolve,
)

if TYPE_CHECKING:
    from jobcluster_worker.cgroup.leaf import Leaf
    from jobcluster_worker.cgroup.tree import Tree

STDOUT, STDERR = 0, 1
WORK_NAME = "work"
STDIN_BYTES = 1 << 20
OUTPUT_BYTES = 1 << 30  # kept where nothing is said
# With a mount namespace these are the task's own, and cannot be seen from here.
_PRIVATE_DIRECTORIES = ("/tmp", "/var/tmp", "/dev")


class StartFailed(Exception):
    """The task cannot be started; the text names what is missing."""


@dataclass(frozen=True, slots=True)
class Site:
    """What all starts of a supervisor share. ``enforced`` tells per resource whether limits hold here, and why not."""

    bootstrap: Bootstrap
    tree: Tree | None
    enforced: dict[str, Enforcement]


@dataclass(slots=True)
class Start:
    """Owns what it makes (log, leaf, pipes) until the task takes it over; its owner undoes a failed one."""

    site: Site
    spec: Spec
    key: TaskKey
    directory: Path
    uid: int | None
    log: OutputLog | None = None
    leaf: Leaf | None = None
    readers: dict[int, int] = field(default_factory=dict)
    """Reading ends of the pipes by kind (STDOUT, STDERR); one for both when they are not kept apart."""
    limits_effective: Limits = field(default_factory=lambda: Limits())
    enforced: dict[str, Enforcement] = field(default_factory=dict)
    _child_fds: list[int] = field(default_factory=list)
    _standard: tuple[int, int, int] = (-1, -1, -1)
    _command: Command | None = None
    _environment: dict[str, str] = field(default_factory=dict)
    _cwd: str = ""
    _confinement: confine.Confinement | None = None

    @property
    def data_path(self) -> Path:
        return self.directory / DATA_NAME

    def prepare(self) -> None:
        """Leaf and limits, directories, log, files, the checked executable, pipes.

        :raises StartFailed: one of them cannot be had; what was made so far is in the fields.
        """
        with _named("output"):
            self.log = self._open_log()
        with _named("limits"):
            self._enter_limits()
        with _named("work directory"):
            work = self._make_work()
        self._confinement = confine.Confinement(
            uid=self.uid,
            gid=self.uid,
            work_directory=work,
            template_directory=self.site.bootstrap.template_directory,
            hide=self.site.bootstrap.hide,
            network=self.spec.get("network") or "host",
            leaf_directory=Path(self.leaf.path) if self.leaf else None,
        )
        self._place_and_resolve(work)
        with _named("pipes"):
            self._open_pipes()

    def spawn(self) -> int:
        """Executes; gives the leader's pid. The child's ends of the pipes are closed here either way.

        :raises StartFailed: it was not executed, and no process is left.
        """
        command, confinement = self._command, self._confinement
        if command is None or confinement is None:
            raise StartFailed("EINVAL: not prepared")
        try:
            return spawn(
                [os.fsencode(word) for word in command.argv],
                os.fsencode(command.executable),
                {os.fsencode(name): os.fsencode(value) for name, value in self._environment.items()},
                self._standard,
                os.fsencode(self._cwd),
                self.leaf.fd if self.leaf else None,
                confinement,
            )
        except OSError as error:
            raise StartFailed(_explain(error, error.filename or command.executable)) from error
        except ValueError as error:
            raise StartFailed(f"EINVAL: {command.executable!r}: {error}") from error
        finally:
            self.close_child_ends()

    def close_child_ends(self) -> None:
        """Again, it does nothing."""
        while self._child_fds:
            os.close(self._child_fds.pop())

    def _open_log(self) -> OutputLog:
        options = self.spec.get("output") or {}
        asked = options.get("max_bytes") or OUTPUT_BYTES
        return OutputLog(
            self.directory,
            max_bytes=min(asked, self.site.bootstrap.output_max_bytes or asked),
            on_limit=options.get("on_limit") or "truncate",
        )

    def _enter_limits(self) -> None:
        limits = self.spec.get("limits") or {}
        tree = self.site.tree
        self.enforced = dict(self.site.enforced)
        if tree is not None:
            self.leaf = tree.leaf(*self.key, limits)
            self.limits_effective = cast(Limits, self.leaf.effective)
            self.enforced = cast(dict[str, Enforcement], self.leaf.enforced)
        if self.site.bootstrap.limits_require:
            self._require(limits)

    def _require(self, limits: Limits) -> None:
        asked = {"cpu": "cpu", "memory": "memory_bytes", "pids": "pids", "io": "io"}
        for resource, name in asked.items():
            state = self.enforced.get(resource)
            if limits.get(name) and state is not None and not state["ok"]:
                raise StartFailed(f"limits.{resource} cannot be enforced on this worker: {state['why']}")

    def _make_work(self) -> Path:
        work = self.directory / WORK_NAME
        os.mkdir(work, 0o700)
        if self.uid is not None:
            os.chown(work, self.uid, self.uid)
        return work

    def _place_and_resolve(self, work: Path) -> None:
        confinement = self._confinement
        if confinement is None:
            raise StartFailed("EINVAL: not confined")
        work_seen, templates_seen = confine.job_paths(confinement)
        home = Place(str(work), work_seen)
        cwd = self._find_cwd(home)
        self._cwd = cwd.seen
        self._environment = environment(self.spec, cwd.seen)
        # The task's own /tmp is made at its start: till then its files are at home, where they can be looked at.
        beside = cwd if _visible(cwd, home) else Place(home.real, cwd.seen)
        try:
            contents = files.decode(self.spec.get("files") or {})
            if contents and beside is not cwd:
                confinement.inside = partial(self._write_inside, cwd.seen, contents)
            if contents:
                inside = beside.real == home.real or beside.real.startswith(f"{home.real}/")
                into = os.path.relpath(beside.real, home.real) if inside else beside.real
                # Opened with our rights: the task may have none to the directories above its own.
                with (
                    _named(f"files into {beside.seen}"),
                    files.opened(home.real) as within,
                    files.rights_of(self.uid),
                ):
                    files.write(into, contents, within)
            resolver = Resolver(
                cwd=beside,
                search_path=self._environment.get("PATH", ""),
                files=contents.keys(),
                template=lambda path: self._template(path, templates_seen),
            )
            self._command = resolver.resolve(self.spec)
        except (files.BadFile, NotExecutable) as error:
            raise StartFailed(str(error)) from error

    def _write_inside(self, cwd: str, contents: dict[str, bytes]) -> None:
        with files.rights_of(self.uid):
            files.write(cwd, contents)

    def _find_cwd(self, home: Place) -> Place:
        asked = self.spec.get("cwd") or ""
        if not asked:
            return home
        if not asked.startswith("/"):
            asked = asked.rstrip("/")
            with (
                _named(f"cwd {asked!r}"),
                files.opened(home.real) as within,
                files.rights_of(self.uid),
            ):
                try:
                    files.parts_of(asked)
                except files.BadFile as error:
                    raise StartFailed(f"EINVAL: cwd {asked!r} leads out of the work directory") from error
                files.make_folders(asked, within)
            return Place(os.path.join(home.real, asked), os.path.join(home.seen, asked))
        place = Place(asked, asked)
        if _visible(place, home) and not os.path.isdir(asked):
            number = errno.ENOTDIR if os.path.exists(asked) else errno.ENOENT
            raise StartFailed(f"{errno.errorcode[number]}: cwd {asked!r}: {os.strerror(number)}")
        return place

    def _template(self, path: str, templates_seen: str) -> Place:
        directory = self.site.bootstrap.template_directory
        try:
            name = resolve(directory, path, own_uid=self.uid is not None)
        except TemplateError as error:
            raise NotExecutable(f"{_template_errno(error)}: {error}") from error
        return Place(os.path.join(str(directory), name), os.path.join(templates_seen, name))

    def _open_pipes(self) -> None:
        stdin = self._open_stdin()
        self._child_fds.append(stdin)
        ends = [self._pipe(STDOUT)]
        separate = (self.spec.get("output") or {}).get("separate", True)
        ends.append(self._pipe(STDERR) if separate else ends[0])
        self._standard = (stdin, ends[0], ends[1])

    def _pipe(self, kind: int) -> int:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._child_fds.append(writer)
        self.readers[kind] = reader
        os.set_blocking(reader, False)
        return writer

    def _open_stdin(self) -> int:
        text = self.spec.get("stdin")
        if text is None:
            return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise StartFailed("EINVAL: stdin is not base64") from None
        if len(content) > STDIN_BYTES:
            raise StartFailed(f"EINVAL: stdin: {len(content)} bytes, {STDIN_BYTES} at most")
        with os.fdopen(os.memfd_create("stdin"), "wb") as file:
            file.write(content)
            file.flush()
            # Opened again for reading only: what the task reads cannot be changed through its descriptor 0.
            return os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def _named(step: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StartFailed(_explain(error, step, error.filename)) from error


def _explain(error: OSError, what: str, file: str | None = None) -> str:
    name = errno.errorcode.get(error.errno or 0, "EIO")
    where = f"{what}: {file}" if file and file not in what else what
    return f"{name}: {where}: {error.strerror or error}"


def _visible(place: Place, home: Place) -> bool:
    """Whether the task sees there what the worker sees there: not in its own /tmp, when it has one."""
    if home.real == home.seen or place.real != place.seen:
        return True
    return not any(place.real == top or place.real.startswith(f"{top}/") for top in _PRIVATE_DIRECTORIES)


def _template_errno(error: TemplateError) -> str:
    if isinstance(error, TemplateNotFound):
        return "ENOENT"
    return "EACCES" if isinstance(error, TemplateDenied | TemplateEscapes) else "EINVAL"
