"""The short directory of the unix sockets: of this launcher's life only, readable by nobody else. Stdlib only."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

_PREFIX = "jobcluster-"


class RunDirectory:
    """Made at the launcher's start, removed at its end; someone may remove it in between (a cleaner of /tmp)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def make(cls, environ: Mapping[str, str]) -> RunDirectory:
        """In /run for root, else in XDG_RUNTIME_DIR, else in /tmp; a socket's path may have 107 bytes (unix(7)).

        :raises OSError: nowhere.
        """
        for base in ("/run", environ.get("XDG_RUNTIME_DIR", ""), "/tmp"):
            if base.startswith("/") and len(base) < 60 and os.access(base, os.W_OK | os.X_OK):
                return cls(Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base)))
        raise FileNotFoundError("neither /run, XDG_RUNTIME_DIR nor /tmp can be written")

    @classmethod
    def remove_left(cls, name: str) -> None:
        """Removes a dead launcher's; a name that is none of ours is passed over."""
        path = Path(name)
        if path.is_absolute() and path.name.startswith(_PREFIX) and not path.is_symlink():
            cls(path).remove()

    @property
    def launcher_socket(self) -> str:
        return str(self.path / "launcher.sock")

    def supervisor_socket(self, name: str) -> str:
        return str(self.path / f"{name}.sock")

    def is_whole(self) -> bool:
        return os.path.exists(self.launcher_socket)

    def remake(self) -> None:
        """:raises OSError: it cannot be made again."""
        self.path.mkdir(mode=0o700, exist_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
