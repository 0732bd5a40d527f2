"""What the launcher is told at its start: the settings it and its supervisors need, already checked. Stdlib only."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Seconds are float, sizes bytes, paths absolute. ``limits_worker`` are the limits of all jobs together."""

    server_argv: list[str]
    settings_file: str = field(default="", kw_only=True)
    """For what is said at the start; the launcher does not read it."""
    state_directory: Path
    data_directory: Path
    template_directory: Path | None = None
    log_file: str = ""
    log_format: str = "json"
    log_level: str = "info"
    hide: list[Path] = field(default_factory=list)
    grace_seconds: float = 10.0
    drain_seconds: float = 0.0
    handover_seconds: float = 5.0
    limits_require: bool = True
    limits_worker: dict[str, Any] = field(default_factory=dict)
    output_max_bytes: int = 0
    """0: as the spec says."""
    tasks_per_supervisor: int = 32

    @classmethod
    def from_json(cls, text: str | bytes) -> Bootstrap:
        """:raises ValueError: no JSON object, or a key is missing."""
        given = json.loads(text)
        try:
            template = given.get("template_directory")
            return cls(
                server_argv=[str(word) for word in given["server_argv"]],
                settings_file=str(given.get("settings_file") or ""),
                state_directory=Path(given["state_directory"]),
                data_directory=Path(given["data_directory"]),
                template_directory=Path(template) if template else None,
                log_file=given.get("log_file") or "",
                log_format=str(given.get("log_format") or "json"),
                log_level=str(given.get("log_level") or "info"),
                hide=[Path(path) for path in given.get("hide") or ()],
                grace_seconds=float(given.get("grace_seconds", 10.0)),
                drain_seconds=float(given.get("drain_seconds", 0.0)),
                handover_seconds=float(given.get("handover_seconds", 5.0)),
                limits_require=bool(given.get("limits_require", True)),
                limits_worker=dict(given.get("limits_worker") or {}),
                output_max_bytes=int(given.get("output_max_bytes") or 0),
                tasks_per_supervisor=int(given.get("tasks_per_supervisor") or 32),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"bootstrap: {error!r}") from error

    @classmethod
    def from_fd(cls, fd: int) -> Bootstrap:
        """Reads a descriptor (memfd or pipe) to its end and closes it.

        :raises OSError, ValueError: it cannot be read, or holds no bootstrap.
        """
        with os.fdopen(fd, "rb") as file:
            if file.seekable():
                file.seek(0)
            return cls.from_json(file.read())
