"""Job templates: scripts in one directory of the worker, by relative name, and never out of it."""

import errno
import os
import stat
from pathlib import Path

from jobcluster_worker.sandbox import libc


class TemplateError(Exception):
    """A template that cannot be used; the text names it and says why."""

    def __init__(self, path: str, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(f"template {path!r}: {why}")


class TemplateNotFound(TemplateError):
    """There is no file of that name (ENOENT)."""


class TemplateEscapes(TemplateError):
    """The name, or a link on its way, leads out of the template directory."""


class NotATemplate(TemplateError):
    """There is something of that name that is not a file."""


class TemplateDenied(TemplateError):
    """The task would not be allowed to read it (EACCES)."""


def resolve(template_directory: Path | None, path: str, *, own_uid: bool = False) -> str:
    """The template's name relative to the directory, checked by the kernel to lie beneath it.

    Links that stay inside are followed. With `own_uid` the task runs as a user that owns nothing here, and needs the
    rights of others to the file and to the folders it lies in.

    :raises TemplateError: one of its kinds, naming the template
    """
    if template_directory is None:
        raise TemplateNotFound(path, "this worker has no job-template directory ([jobs] template_directory)")
    if not path or "\0" in path or path.startswith("/") or ".." in path.split("/"):
        raise TemplateEscapes(path, "must be a relative name without '..'")
    try:
        directory = os.open(template_directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise TemplateNotFound(path, f"directory {template_directory}: {error.strerror}") from error
    try:
        _check(directory, path, own_uid)
    finally:
        os.close(directory)
    return os.path.normpath(path)


def _check(directory: int, path: str, own_uid: bool) -> None:
    found = _open_beneath(directory, path, path)
    try:
        status = os.fstat(found)
    finally:
        os.close(found)
    if not stat.S_ISREG(status.st_mode):
        raise NotATemplate(path, "is not a file")
    if own_uid and not status.st_mode & stat.S_IROTH:
        raise TemplateDenied(path, "Permission denied: the task's own user may not read it (chmod o+r)")
    if not own_uid and not os.access(path, os.R_OK, dir_fd=directory):
        raise TemplateDenied(path, "Permission denied")
    if own_uid:
        _check_folders(directory, path)


def _check_folders(directory: int, path: str) -> None:
    folders = [part for part in path.split("/")[:-1] if part]
    for depth in range(len(folders) + 1):
        folder = _open_beneath(directory, "/".join(folders[:depth]) or ".", path)
        try:
            searchable = os.fstat(folder).st_mode & stat.S_IXOTH
        finally:
            os.close(folder)
        if not searchable:
            name = "/".join(folders[:depth]) or "the template directory"
            raise TemplateDenied(
                path, f"Permission denied: the task's own user may not enter {name} (chmod o+x)"
            )


def _open_beneath(directory: int, name: str, path: str) -> int:
    try:
        return libc.openat2(directory, name, os.O_PATH, libc.RESOLVE_BENEATH | libc.RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise TemplateNotFound(path, os.strerror(error.errno)) from error
        if error.errno in (errno.EXDEV, errno.ELOOP):
            raise TemplateEscapes(path, "leads out of the template directory") from error
        if error.errno == errno.EACCES:
            raise TemplateDenied(path, "Permission denied") from error
        raise TemplateError(path, error.strerror or str(error)) from error
