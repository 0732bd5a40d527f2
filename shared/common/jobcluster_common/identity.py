"""Who a process is, as its certificate says it: one SPIFFE-style URI, and the DNS name that TLS checks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

TRUST_DOMAIN = "jobcluster"

# A name is also a DNS label (RFC 1035), because TLS clients check it as part of dns_name.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class Kind(StrEnum):
    """What a certificate makes of its holder."""

    CONTROLLER = "controller"  # the one that decides
    WORKER = "worker"  # one that runs jobs; its name is the worker's id
    USER = "user"  # a person or program that calls the controller


@dataclass(frozen=True, slots=True)
class Identity:
    """An identity in the cluster. ``name`` is the worker's id or the user's name; the controller has none.

    :raises ValueError: if the name is not a DNS label, or there is one too many or too few.
    """

    kind: Kind
    name: str = ""

    def __post_init__(self) -> None:
        if self.kind is Kind.CONTROLLER:
            if self.name:
                raise ValueError(f"not a controller's identity, which has no name: {self.name!r}")
        elif not _NAME.fullmatch(self.name):
            raise ValueError(
                f"not a {self.kind} name (small letters, digits, hyphens, at most 63): {self.name!r}"
            )

    @property
    def uri(self) -> str:
        """The one URI in the certificate's subject alternative name."""
        path = f"{self.kind}/{self.name}" if self.name else str(self.kind)
        return f"spiffe://{TRUST_DOMAIN}/{path}"

    @property
    def dns_name(self) -> str:
        """The one DNS name there; what ``grpc.ssl_target_name_override`` checks, whatever the address."""
        return f"{self.name}.{self.kind}.{TRUST_DOMAIN}" if self.name else f"{self.kind}.{TRUST_DOMAIN}"

    @classmethod
    def parse(cls, uri: str) -> Self:
        """The identity with exactly this URI.

        :raises ValueError: if no identity has it.
        """
        prefix = f"spiffe://{TRUST_DOMAIN}/"
        kind, _, name = uri.removeprefix(prefix).partition("/")
        if not uri.startswith(prefix) or kind not in list(Kind):
            raise ValueError(f"not an identity of this cluster: {uri!r}")
        identity = cls(Kind(kind), name)
        # "…/controller/" parses to the controller too; only the exact spelling counts.
        if identity.uri != uri:
            raise ValueError(f"not an identity of this cluster: {uri!r}")
        return identity

    def __str__(self) -> str:
        return self.uri


CONTROLLER = Identity(Kind.CONTROLLER)
