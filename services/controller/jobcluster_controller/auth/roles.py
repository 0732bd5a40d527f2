"""The permission tables' words: roles of tokens, and what a route demands."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """What a token makes of its bearer. Each of the first three may do all that the one before may."""

    VIEWER = "viewer"
    """Sees everything but output."""
    OPERATOR = "operator"
    """Also output, start, stop."""
    ADMIN = "admin"
    """Also workers."""
    JOIN = "join"
    """May enrol a worker, and nothing else."""


class Access(StrEnum):
    """What a route demands."""

    PUBLIC = "public"
    """Nothing."""
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"
    JOIN = "join"


_MAY = {
    Role.VIEWER: frozenset({Access.VIEWER}),
    Role.OPERATOR: frozenset({Access.VIEWER, Access.OPERATOR}),
    Role.ADMIN: frozenset({Access.VIEWER, Access.OPERATOR, Access.ADMIN}),
    Role.JOIN: frozenset({Access.JOIN}),
}


def permits(role: Role | None, access: Access) -> bool:
    """Whether the bearer of a token with ``role`` (None: no token) may enter a route with ``access``."""
    return access is Access.PUBLIC or (role is not None and access in _MAY[role])
