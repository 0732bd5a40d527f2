"""The pids controller: how many processes and threads a task may have at once."""

from collections.abc import Mapping
from typing import Any, Final

CONTROLLER: Final = "pids"
MAX_FILE: Final = "pids.max"
PEAK_FILE: Final = "pids.peak"  # since Linux 6.6


def values(limits: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What to write for `limits["pids"]`; nothing for none."""
    limit = int(limits.get("pids") or 0)
    return [(MAX_FILE, str(limit))] if limit else []


def parse_max(text: str) -> int | None:
    """Processes and threads; None = no limit."""
    return None if text.strip() == "max" else int(text)
