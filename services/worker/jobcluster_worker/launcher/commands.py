"""What a command must look like; a supervisor believes nobody, not even its server of another version. Stdlib only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

from jobcluster_worker.launcher.shapes import Spec, key_of


class Refused(Exception):
    """A command that is not carried out; ``code`` is for programs, the text for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_text_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(k) and _is_text(v) for k, v in value.items())


def _is_environment(value: Any) -> bool:
    return _is_text_by_name(value) and all(name and "=" not in name for name in value)


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "task_count": _is_count,
    "worker_id": _is_text,
    "command_words": _is_texts,
    "path": _is_text,
    "args": _is_texts,
    "files": _is_text_by_name,
    "env": _is_environment,
    "cwd": _is_text,
    "stdin": lambda value: value is None or _is_text(value),
    "timeout_seconds": _is_seconds,
    "limits": lambda value: isinstance(value, dict),
    "network": lambda value: value in ("", "host", "none"),
    "output": lambda value: (
        isinstance(value, dict) and value.get("on_limit") in (None, "", "truncate", "stop")
    ),
    "peers": _is_texts,
    "array_index": lambda value: value is None or _is_count(value),
}


def checked_spec(value: Any) -> Spec:
    """The spec of a start; unknown fields (of a newer server) are passed over, null is absent.

    :raises Refused: ``invalid``, naming the field.
    """
    try:
        key_of(value)
    except ValueError as error:
        raise Refused("invalid", str(error)) from None
    spec = {name: field for name, field in value.items() if field is not None}
    for name, is_good in _FIELDS.items():
        if name in spec and not is_good(spec[name]):
            raise Refused("invalid", f"{name} is not what it must be")
    return cast(Spec, spec)


def seconds(value: Any, default: float) -> float:
    """:raises Refused: ``invalid``, when it is no duration."""
    if value is None:
        return default
    if not _is_seconds(value):
        raise Refused("invalid", f"{value!r} is no number of seconds")
    return float(value)
