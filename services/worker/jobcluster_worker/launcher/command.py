"""From a spec's command, path and args to an executable and its argv. Stdlib only.

A process that cannot be executed ends start_failed with the errno's name: it is never left to a shell's 127.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass

from jobcluster_worker.launcher.shapes import Spec


class NotExecutable(Exception):
    """It cannot be executed; the text begins with the errno's name and names the file."""

    @classmethod
    def because(cls, number: int, what: str) -> NotExecutable:
        return cls(f"{errno.errorcode.get(number, number)}: {what}: {os.strerror(number)}")


@dataclass(frozen=True, slots=True)
class Place:
    """A directory as the worker sees it and as the task sees it."""

    real: str
    seen: str


@dataclass(frozen=True, slots=True)
class Command:
    """What to execute: the path as the task sees it, and argv."""

    executable: str
    argv: list[str]


@dataclass(frozen=True, slots=True)
class Resolver:
    """Where a task's names are looked up.

    ``template`` maps a relative path to the real and the seen path of a job template, or raises NotExecutable.
    """

    cwd: Place
    search_path: str
    files: Collection[str]
    template: Callable[[str], Place]

    def resolve(self, spec: Spec) -> Command:
        """argv = command words + [resolved path] + args; a path alone is executed itself.

        :raises NotExecutable: the program or script is not there, no file, or not executable.
        """
        words, args = list(spec.get("command_words") or ()), list(spec.get("args") or ())
        script = self._script(spec.get("path") or "")
        if words:
            program = self._program(words[0])
            _check_executable(program.real, words[0])
            if script is not None:
                _check_file(script.real, spec["path"])
        elif script is not None:
            program = script
            _check_executable(script.real, spec["path"])
        else:
            raise NotExecutable.because(errno.ENOENT, "neither a command nor a path")
        return Command(program.seen, [*words, *([script.seen] if script else ()), *args])

    def _script(self, path: str) -> Place | None:
        if not path:
            return None
        name = os.path.normpath(path)
        if name in self.files:
            return Place(os.path.join(self.cwd.real, name), os.path.join(self.cwd.seen, name))
        return Place(path, path) if path.startswith("/") else self.template(path)

    def _program(self, word: str) -> Place:
        if word.startswith("/"):
            return Place(word, word)
        if "/" in word:
            return Place(os.path.join(self.cwd.real, word), os.path.join(self.cwd.seen, word))
        return self._search(word)

    def _search(self, word: str) -> Place:
        """As execvp(3): the first that may be executed; EACCES only if one was found that may not."""
        denied = False
        for directory in self.search_path.split(":"):
            # An empty or relative entry means the task's own working directory.
            path = os.path.join(directory, word)
            real = os.path.join(self.cwd.real, path)
            problem = _problem(real) if word else errno.ENOENT
            if problem is None:
                return Place(real, os.path.join(self.cwd.seen, path))
            denied = denied or problem == errno.EACCES
        if denied:
            raise NotExecutable.because(errno.EACCES, f"{word!r} in PATH")
        raise NotExecutable(f"ENOENT: {word!r}: not found in PATH ({self.search_path})")


def _problem(path: str, execute: bool = True) -> int | None:
    """The errno with which an exec of the file would fail, as far as its inode tells."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        return getattr(error, "errno", None) or errno.ENOENT
    if not stat.S_ISREG(mode):
        return errno.EACCES if execute else (errno.EISDIR if stat.S_ISDIR(mode) else None)
    return errno.EACCES if execute and not mode & 0o111 else None


def _check_executable(path: str, name: str) -> None:
    if (number := _problem(path)) is not None:
        raise NotExecutable.because(number, repr(name))


def _check_file(path: str, name: str) -> None:
    if (number := _problem(path, execute=False)) is not None:
        raise NotExecutable.because(number, repr(name))
