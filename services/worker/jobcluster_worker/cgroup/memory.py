"""The memory controller: bytes asked for, what an OOM kill takes with it, and the kernel's count of those kills."""

from collections.abc import Mapping
from typing import Any, Final

CONTROLLER: Final = "memory"
MAX_FILE: Final = "memory.max"
SWAP_FILE: Final = "memory.swap.max"
OOM_GROUP_FILE: Final = "memory.oom.group"
PEAK_FILE: Final = "memory.peak"  # since Linux 5.19
EVENTS_FILE: Final = "memory.events"


def values(limits: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What to write for `limits["memory_bytes"]` and `limits["oom"]`.

    The OOM group is set without a limit too: the worker-wide limit can kill as well.
    """
    group = "0" if limits.get("oom") == "process" else "1"
    written = [(OOM_GROUP_FILE, group)]
    if limit := int(limits.get("memory_bytes") or 0):
        # Without this a task over its limit would swap the machine to a crawl instead of ending.
        written += [(MAX_FILE, str(limit)), (SWAP_FILE, "0")]
    return written


def parse_max(text: str) -> int | None:
    """Bytes; None = no limit."""
    return None if text.strip() == "max" else int(text)


def parse_oom_group(text: str) -> str:
    return "group" if text.strip() == "1" else "process"


def parse_events(text: str) -> dict[str, int]:
    """oom_kills: processes of this very group that the OOM killer took.

    The kernel documents oom_kill as just that. But a kill of the whole group (memory.oom.group) takes the victim first
    and then every member, the victim among them, and counts it both times (mm/oom_kill.c; 2 for one process and 5 for
    four on Linux 6.1). oom_group_kill, since 5.17, tells how often that was.
    """
    counters = dict(line.split() for line in text.splitlines() if line)
    kills = int(counters["oom_kill"])
    return {"oom_kills": max(kills - int(counters.get("oom_group_kill", 0)), min(kills, 1))}
