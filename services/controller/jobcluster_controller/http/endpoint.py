"""One row of the table of routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel
from starlette.types import ASGIApp

from ..auth.roles import Access
from ..schemas.requests import NoQuery
from .call import Call

Handler = Callable[[Call], Awaitable[ASGIApp]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route. ``answers`` are models by status (None: not JSON), ``media`` what else it can answer with."""

    method: str
    path: str
    handler: Handler
    access: Access | None = None
    query: type[BaseModel] = NoQuery
    body: type[BaseModel] | None = None
    body_required: bool = True
    headers: type[BaseModel] | None = None
    answers: Mapping[int, type[BaseModel] | None] = field(default_factory=dict)
    media: tuple[str, ...] = ()
    errors: tuple[int, ...] = ()
    sends: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Headers of its answers, by status."""
    lasts: bool = False
    """It may wait or stream: its duration says nothing."""
