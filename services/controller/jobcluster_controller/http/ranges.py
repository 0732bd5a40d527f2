"""The Range header (RFC 9110, 14): one range of bytes; several, or another unit, are ignored as it allows."""

from __future__ import annotations

import re

from .problems import RangeOutside

_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.IGNORECASE)


def read_range(header: str, size_bytes: int) -> tuple[int, int] | None:
    """(first, last) byte, both within the stream; None: not a range that is understood.

    :raises RangeOutside: if it begins beyond the end.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        wanted = min(int(last), size_bytes)
        if wanted == 0:
            raise RangeOutside(size_bytes)
        return size_bytes - wanted, size_bytes - 1
    begin, end = int(first), int(last) if last else size_bytes - 1
    if last and end < begin:
        return None
    if begin >= size_bytes:
        raise RangeOutside(size_bytes)
    return begin, min(end, size_bytes - 1)
