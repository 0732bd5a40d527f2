"""Mutual TLS for gRPC, TLS 1.3 only. Import this before grpc: two of its settings are read at its import."""

from __future__ import annotations

import os
import sys

# grpcio has no setting for the lowest TLS version (grpc/grpc#37305). Our leaves are ECDSA, so a list of RSA-only suites
# leaves TLS 1.2 none in common; those of TLS 1.3 are not governed by it. rpc.peer_identity checks the version again.
_SUITES = "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256"
if "grpc" in sys.modules and os.environ.get("GRPC_SSL_CIPHER_SUITES") != _SUITES:
    raise ImportError("jobcluster_common.tls must be imported before grpc, else TLS 1.2 would be open")
os.environ["GRPC_SSL_CIPHER_SUITES"] = _SUITES
# We never fork beside grpc's threads; its fork handlers would only cost.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
import grpc.aio
import structlog

from .identity import Identity

log = structlog.get_logger()

MESSAGE_BYTES = 8 << 20
_KEEPALIVE: list[tuple[str, object]] = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A link that had traffic when it froze is watched by this one, which is a minute by default.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
]
SERVER_OPTIONS: list[tuple[str, object]] = [
    *_KEEPALIVE,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # With SO_REUSEPORT a second server on a taken port would not fail but share it.
    ("grpc.so_reuseport", 0),
]
STREAM_WINDOW_BYTES = 256 << 10
CHANNEL_OPTIONS: list[tuple[str, object]] = [
    *_KEEPALIVE,
    # What a stream that nobody reads may hold here. Left to its bandwidth probe, grpc lets each one grow to many MiB
    # on a fast link: twenty stalled readers took 340 MiB.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", STREAM_WINDOW_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: own certificate, its key, and the cluster's CA (one or, while it is exchanged, several)."""

    crt_file: Path
    key_file: Path
    ca_file: Path

    def read(self) -> tuple[bytes, bytes, bytes]:
        """(certificate, key, CA).

        :raises OSError: if one cannot be read.
        """
        return self.crt_file.read_bytes(), self.key_file.read_bytes(), self.ca_file.read_bytes()

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Changes when a file is replaced or rewritten."""
        stats = [path.stat() for path in (self.crt_file, self.key_file, self.ca_file)]
        return tuple((s.st_ino, s.st_mtime_ns, s.st_size) for s in stats)


class _Reloader:
    """A server's certificate configuration; grpc asks it before each handshake, on a thread of its own."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamp = files.stamp()
        self.initial = self._read()

    def _read(self) -> grpc.ServerCertificateConfiguration:
        crt, key, ca = self._files.read()
        return grpc.ssl_server_certificate_configuration([(key, crt)], root_certificates=ca)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            stamp = self._files.stamp()
            if stamp == self._stamp:
                return None
            fresh = self._read()
        except OSError as error:  # half-way through an exchange of the files: the old ones serve on
            log.warning("certificate_reload_failed", reason=str(error))
            return None
        self._stamp = stamp
        log.info("certificate_reloaded", file=str(self._files.crt_file))
        return fresh


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that demand a client certificate of the cluster's CA and follow the files when they change.

    :raises OSError: if a file cannot be read.
    """
    reloader = _Reloader(files)
    # The stubs do not know that None means "no change".
    fetcher = cast(Callable[[], grpc.ServerCertificateConfiguration], reloader)
    return grpc.dynamic_ssl_server_credentials(reloader.initial, fetcher, require_client_authentication=True)


def channel(
    address: str, files: TlsFiles | None, peer: Identity, options: Sequence[tuple[str, object]] = ()
) -> grpc.aio.Channel:
    """A channel to ``peer``, wherever ``address`` (host:port) is: its certificate must carry the peer's name.

    Without ``files`` it is plain text, for loopback only. Certificates are read once (grpc/grpc#15735): when the
    files change, make a new channel.

    :raises OSError: if a file cannot be read.
    """
    arguments = [*CHANNEL_OPTIONS, *options]
    if files is None:
        return grpc.aio.insecure_channel(address, options=arguments)
    crt, key, ca = files.read()
    credentials = grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=crt)
    arguments.append(("grpc.ssl_target_name_override", peer.dns_name))
    return grpc.aio.secure_channel(address, credentials, options=arguments)
