"""Writes a spec's files beneath a directory, with the task's own rights. Stdlib only."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from jobcluster_worker.sandbox import libc

FILES_BYTES = 1 << 20
_NAME_BYTES = 255
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


class BadFile(Exception):
    """A name or content that is not accepted; the text names it."""


def parts_of(name: str) -> list[str]:
    """The components of a file's name.

    :raises BadFile: it is absolute, leaves the directory, or no path at all.
    """
    parts = name.split("/")
    if "\0" in name or any(part in ("", ".", "..") or len(os.fsencode(part)) > _NAME_BYTES for part in parts):
        raise BadFile(f"files: {name!r} is not a relative path within the working directory")
    return parts


def decode(files: Mapping[str, str]) -> dict[str, bytes]:
    """Contents by name, every name checked.

    :raises BadFile: a bad name or base64, a file that is also a folder, or more than 1 MiB in all.
    """
    decoded: dict[str, bytes] = {}
    folders: set[str] = set()
    for name, text in files.items():
        parts = parts_of(name)
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        try:
            decoded[name] = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise BadFile(f"files: the content of {name!r} is not base64") from None
    if clash := sorted(folders & decoded.keys()):
        raise BadFile(f"files: {clash[0]!r} is a file and a folder")
    if (total := sum(map(len, decoded.values()))) > FILES_BYTES:
        raise BadFile(f"files: {total} bytes, {FILES_BYTES} at most")
    return decoded


@contextmanager
def opened(directory: str) -> Iterator[int]:
    """A descriptor of the directory: who has it needs no rights to the directories above.

    :raises OSError: it cannot be opened.
    """
    with ExitStack() as stack:
        yield _open(stack, directory, _DIRECTORY, None)


def make_folders(path: str, within: int) -> None:
    """Makes ``path`` and the folders on its way, beneath the opened directory.

    :raises OSError: one cannot be made, or is no directory.
    """
    with ExitStack() as stack:
        at = within
        for folder in parts_of(path):
            at = _enter(stack, folder, at)


def write(directory: str, contents: Mapping[str, bytes], within: int | None = None) -> None:
    """Writes each file, mode 0755, and the folders on its way; no symbolic link is followed.

    A relative ``directory`` is beneath the opened directory ``within``.

    :raises OSError: it cannot be written.
    """
    for name, content in contents.items():
        *folders, last = parts_of(name)
        with ExitStack() as stack:
            at = _open(stack, directory, _DIRECTORY & ~os.O_NOFOLLOW, within)
            for folder in folders:
                at = _enter(stack, folder, at)
            fd = os.open(last, _CREATE, 0o755, dir_fd=at)
            stack.callback(os.close, fd)
            os.fchmod(fd, 0o755)
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]


def _enter(stack: ExitStack, folder: str, at: int) -> int:
    with suppress(FileExistsError):
        os.mkdir(folder, 0o755, dir_fd=at)
    return _open(stack, folder, _DIRECTORY, at)


def _open(stack: ExitStack, path: str, flags: int, at: int | None) -> int:
    fd = os.open(path, flags, dir_fd=at)
    stack.callback(os.close, fd)
    return fd


@contextmanager
def rights_of(uid: int | None) -> Iterator[None]:
    """File access of the calling thread as that uid (and gid) has it: what it makes is owned so, and root's rights
    reach no file on its behalf. The C library's setfsuid is per thread, unlike its setuid (nptl(7)).
    """
    if uid is None:
        yield
        return
    libc.lib.setfsgid(uid)
    libc.lib.setfsuid(uid)
    try:
        # Neither call reports an error; asking for an impossible id gives the present one (setfsuid(2)).
        if libc.lib.setfsuid(-1) != uid or libc.lib.setfsgid(-1) != uid:
            raise PermissionError(1, f"file access as uid {uid}: Operation not permitted")
        yield
    finally:
        libc.lib.setfsuid(0)
        libc.lib.setfsgid(0)
