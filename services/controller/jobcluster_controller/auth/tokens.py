"""Bearer tokens: only their SHA-256 is kept, and all of them are compared, in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from jobcluster_common.errors import Unauthenticated
from jobcluster_common.settings import SettingsError

from .roles import Role

TOKEN_LENGTH_MIN = 16  # characters; ours have 256 bits
_HASHED = re.compile(r"sha256:([0-9a-fA-F]{64})")


class Tokens:
    """The known tokens' digests with their roles."""

    def __init__(self, digests: Mapping[bytes, Role]) -> None:
        self._digests = tuple(digests.items())

    @classmethod
    def of(cls, tokens: Mapping[str, Role]) -> Tokens:
        """From tokens in clear."""
        return cls({_digest(token): role for token, role in tokens.items()})

    @classmethod
    def read(cls, files: Mapping[Role, Path | None]) -> Tokens:
        """From files of one token a line, each in clear or as ``sha256:`` and its hash in hex.

        :raises SettingsError: if a file cannot be used, or gives two roles the same token.
        """
        digests: dict[bytes, Role] = {}
        for role, path in files.items():
            for digest in () if path is None else _read(role, path):
                if digests.setdefault(digest, role) is not role:
                    raise SettingsError(
                        f"{path}: auth.{role}: the same token as auth.{digests[digest]}; make another"
                    )
        return cls(digests)

    def role_of(self, authorization: str | None) -> Role:
        """The role of an ``Authorization`` header.

        :raises Unauthenticated: if it is missing, not ``Bearer``, or its token is not known.
        """
        if authorization is None:
            raise Unauthenticated("a bearer token is needed: Authorization: Bearer TOKEN")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Unauthenticated("not a bearer token: Authorization: Bearer TOKEN")
        given = _digest(token.strip())
        found: Role | None = None
        for digest, role in self._digests:
            # No early way out: how long it takes says nothing about which one it was.
            if hmac.compare_digest(digest, given):
                found = role
        if found is None:
            raise Unauthenticated("the token is not known")
        return found


def name_of(authorization: str | None) -> str:
    """Tells one bearer from another of the same role; the token cannot be had from it."""
    return _digest((authorization or "").partition(" ")[2].strip()).hex()[:16]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _read(role: Role, path: Path) -> list[bytes]:
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise SettingsError(
            f"{path}: auth.{role}: cannot be read: {reason}; make it with make certs"
        ) from None
    if not lines:
        raise SettingsError(f"{path}: auth.{role}: the file is empty; put a token into it")
    digests = []
    for line in lines:
        hashed = _HASHED.fullmatch(line)
        if hashed is None and (line.startswith("sha256:") or len(line) < TOKEN_LENGTH_MIN):
            raise SettingsError(
                f"{path}: auth.{role}: not a token: {TOKEN_LENGTH_MIN} characters or more, or sha256: and 64 hex digits"
            )
        digests.append(bytes.fromhex(hashed[1]) if hashed else _digest(line))
    return digests
