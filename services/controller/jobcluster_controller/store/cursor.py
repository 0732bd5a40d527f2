"""The cursor of a list: opaque to callers, the number of the last job that was shown to us."""

from __future__ import annotations

from jobcluster_common.errors import BadRequest

BEFORE_ALL = (1 << 63) - 1
_PREFIX = "n"


def encode(number: int) -> str:
    return f"{_PREFIX}{number:x}"


def decode(cursor: str | None) -> int:
    """The number below which the page begins.

    :raises BadRequest: the cursor is none of ours.
    """
    if cursor is None:
        return BEFORE_ALL
    digits = cursor.removeprefix(_PREFIX)
    # int() would take spaces, signs and underscores too.
    if digits == cursor or not digits or not set(digits) <= set("0123456789abcdef") or len(digits) > 15:
        raise BadRequest(f"not a cursor of this list: {cursor[:40]!r}")
    return int(digits, 16)
