"""Where a worker may say it is: at the address its call came from, and nowhere else (no SSRF by registration)."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from urllib.parse import unquote

from jobcluster_common.errors import Denied, Fault, Invalid

RESOLVE_SECONDS_MAX = 5.0

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_HOST_PORT = re.compile(r"(?:\[(?P<literal>[0-9A-Fa-f:.]+)\]|(?P<host>[^\[\]/@:\s]*)):(?P<port>[0-9]{1,5})")
# At least one letter: decimal and octal spellings of addresses are not names.
_NAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?")


async def advertised(address: str, peer: str) -> str:
    """The host:port to dial for a worker that calls from ``peer`` (grpc's form) and says it serves at ``address``.

    A wildcard host is the peer's; a name must resolve to the peer's address, which is then dialled.

    :raises Invalid: if it is no host:port.
    :raises Denied: if it is another host than the peer's. Two loopback addresses are the same host.
    """
    match = _HOST_PORT.fullmatch(address)
    port = int(match["port"]) if match else 0
    if match is None or not 0 < port < 65536:
        raise Invalid([Fault("/address", f"not host:port: {address!r}")])
    caller = peer_address(peer)
    text = match["literal"] or match["host"]
    if text == "":
        return _join(caller, port)
    given = _ip(text)
    if given is not None and given.is_unspecified:
        return _join(caller, port)
    if given is None:
        await _resolves_to(text, caller)
        return _join(caller, port)
    if given == caller or (given.is_loopback and caller.is_loopback):
        return _join(given, port)
    raise Denied(f"the address {address} is not the caller's, {caller}")


def peer_address(peer: str) -> IpAddress:
    """The address in what grpc calls a peer: ``ipv4:10.0.0.1:5000``, ``ipv6:%5B::1%5D:5000``.

    :raises Denied: if it has none (a unix socket).
    """
    family, _, rest = unquote(peer).partition(":")
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    found = _ip(host) if family in ("ipv4", "ipv6") else None
    if found is None:
        raise Denied(f"no address is known of the caller: {peer}")
    return found


def _ip(text: str) -> IpAddress | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return mapped or found


async def _resolves_to(name: str, caller: IpAddress) -> None:
    if not _NAME.fullmatch(name):
        raise Invalid([Fault("/address", f"not a host: {name!r}")])
    try:
        async with asyncio.timeout(RESOLVE_SECONDS_MAX):
            found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        raise Denied(f"the host {name} has no address here") from None
    addresses = {_ip(str(entry[4][0]).partition("%")[0]) for entry in found}
    loopback = caller.is_loopback and any(a is not None and a.is_loopback for a in addresses)
    if caller not in addresses and not loopback:
        raise Denied(f"the host {name} is not the caller, {caller}")


def _join(host: IpAddress, port: int) -> str:
    return f"[{host}]:{port}" if host.version == 6 else f"{host}:{port}"
