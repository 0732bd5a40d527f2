"""Where a worker may say it is."""

from __future__ import annotations

import pytest
from jobcluster_common.errors import Denied, Invalid
from jobcluster_controller.rpc.address import advertised, peer_address


@pytest.mark.parametrize(
    ("address", "peer", "dialled"),
    [
        ("10.0.0.7:7444", "ipv4:10.0.0.7:50000", "10.0.0.7:7444"),
        ("0.0.0.0:7444", "ipv4:10.0.0.7:50000", "10.0.0.7:7444"),
        (":7444", "ipv4:10.0.0.7:50000", "10.0.0.7:7444"),
        ("[::]:7444", "ipv6:%5Bfd00::7%5D:50000", "[fd00::7]:7444"),
        ("[::]:7444", "ipv6:[fd00::7]:50000", "[fd00::7]:7444"),
        ("[fd00:0::7]:1", "ipv6:%5Bfd00::7%5D:50000", "[fd00::7]:1"),
        ("10.0.0.7:7444", "ipv6:%5B::ffff:10.0.0.7%5D:50000", "10.0.0.7:7444"),
        ("127.0.0.1:7444", "ipv4:127.0.0.1:50000", "127.0.0.1:7444"),
        ("127.0.0.1:7444", "ipv6:%5B::1%5D:50000", "127.0.0.1:7444"),
        ("[::1]:7444", "ipv4:127.0.0.1:50000", "[::1]:7444"),
        ("localhost:7444", "ipv4:127.0.0.1:50000", "127.0.0.1:7444"),
    ],
)
async def test_the_peers_own_address_is_dialled(address: str, peer: str, dialled: str) -> None:
    assert await advertised(address, peer) == dialled


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.8:7444",
        "127.0.0.1:7444",
        "169.254.169.254:80",
        "[::ffff:127.0.0.1]:7444",
        "[fd00:ec2::254]:80",
        "224.0.0.1:80",
        "localhost:7444",
        "no-such-host.invalid:7444",
    ],
)
async def test_another_host_is_refused(address: str) -> None:
    with pytest.raises(Denied):
        await advertised(address, "ipv4:10.0.0.7:50000")


@pytest.mark.parametrize(
    "address",
    [
        "",
        "10.0.0.7",
        "10.0.0.7:",
        "10.0.0.7:0",
        "10.0.0.7:65536",
        "10.0.0.7:7444/x",
        "http://10.0.0.7:80",
        "unix:/run/x",
        "unix:///x:1",
        "xds:///x:1",
        "dns:10.0.0.7:80",
        "ipv4:10.0.0.7:80",
        "user@10.0.0.7:80",
        "10.0.0.7 :80",
        "2130706433:80",
        "0177.0.0.1:80",
        "0:80",
        "[::1:80",
        "::1:80",
        "a\0b:80",
        "ü.example:80",
    ],
)
async def test_what_is_not_host_and_port_is_invalid(address: str) -> None:
    with pytest.raises(Invalid):
        await advertised(address, "ipv4:10.0.0.7:50000")


def test_a_peer_without_an_address_is_refused() -> None:
    for peer in ("unix:/tmp/socket", "", "ipv4:nonsense:1"):
        with pytest.raises(Denied):
            peer_address(peer)
