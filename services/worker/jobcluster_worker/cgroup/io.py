"""The io controller: bytes and operations per second on one block device, and the kernel's count of bytes."""

from collections.abc import Collection, Mapping
from typing import Any, Final

CONTROLLER: Final = "io"
MAX_FILE: Final = "io.max"
STAT_FILE: Final = "io.stat"

# Our word for it, and the kernel's.
KEYS: Final = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}


def asked(limits: Mapping[str, Any]) -> dict[str, int]:
    """The io limits that are set."""
    given = limits.get("io") or {}
    return {key: int(given[key]) for key in KEYS if given.get(key)}


def values(limits: Mapping[str, Any], device: str | None) -> list[tuple[str, str]]:
    """What to write for `limits["io"]` on device "8:0"; nothing for none, or without a device."""
    wanted = asked(limits)
    if not wanted or device is None:
        return []
    return [(MAX_FILE, " ".join([device, *(f"{KEYS[key]}={value}" for key, value in wanted.items())]))]


def parse_max(text: str, device: str | None) -> dict[str, int | None]:
    """The device's limits by our words; None = no limit."""
    held = _by_device(text).get(device or "", {})
    return {
        key: None if (word := held.get(kernel, "max")) == "max" else int(word) for key, kernel in KEYS.items()
    }


def parse_stat(text: str, stacked: Collection[str] = ()) -> dict[str, int]:
    """Bytes read and written; devices that are made of others are left out, the kernel counts each layer."""
    devices = {device: held for device, held in _by_device(text).items() if device not in stacked}
    return {
        "io_read_bytes": sum(int(held.get("rbytes", 0)) for held in devices.values()),
        "io_write_bytes": sum(int(held.get("wbytes", 0)) for held in devices.values()),
    }


def devices_of(text: str) -> list[str]:
    """The devices named in io.stat."""
    return list(_by_device(text))


def _by_device(text: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        device, *pairs = line.split() or [""]
        if ":" in device:
            found[device] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return found
