"""The ASGI application: finds the route, checks who may enter, and turns every error into a problem document."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

import structlog
from jobcluster_common import logs
from jobcluster_common.errors import (
    Denied,
    Fault,
    Invalid,
    JobclusterError,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from pydantic import BaseModel, ValidationError
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..auth.roles import Access, Role, permits
from ..domain.query import OutputCut
from ..schemas.parse import faults_of
from .call import Call, ClientGone
from .doors import Doors
from .endpoint import Endpoint
from .openapi import describe
from .problems import MethodNotAllowed, as_problem, problem
from .routes import TABLE, check

log = structlog.get_logger()

# Of a path or an id that a stranger may have made up, in an event.
_SHOWN_MAX = 200


class Door:
    """The way in over HTTP.

    :raises ValueError: if a route of the table does not say who may use it.
    """

    def __init__(self, doors: Doors, table: Sequence[Endpoint] = TABLE) -> None:
        check(table)
        self._doors = doors
        doors.describe = functools.cache(lambda: describe(table))
        self._routes = [(Route(e.path, _never, methods=[e.method]), e) for e in table]
        self._public = {e.path for e in table if e.access is Access.PUBLIC}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        visit = _Visit(logs.request_id(request.headers.get(logs.REQUEST_ID)), send)
        logs.bind(request_id=visit.request_id)
        try:
            response = await self._answer(request, visit)
            await response(scope, receive, visit.send)
        except ClientGone:
            pass
        finally:
            visit.count(self._doors, scope["method"])

    async def _answer(self, request: Request, visit: _Visit) -> ASGIApp:
        try:
            endpoint, role = self._enter(request, visit)
            call = Call(request, self._doors, role, _read_query(endpoint.query, request))
            return await endpoint.handler(call)
        except ClientGone:
            raise
        except JobclusterError as error:
            found = error
        except OutputCut as error:
            found = Unavailable(str(error))
        except Exception as error:
            log.error("request_failed", path=_shown(request), exc_info=error)
            found = as_problem(error)
        if isinstance(found, Unauthenticated | Denied):
            peer = request.client.host if request.client else None
            log.warning("http_refused", peer=peer, path=_shown(request), reason=found.detail)
        status, headers, body = problem(found, visit.request_id)
        return Response(body, status, headers)

    def _enter(self, request: Request, visit: _Visit) -> tuple[Endpoint, Role | None]:
        endpoint, params, allowed = self._find(request.scope)
        role: Role | None = None
        if (endpoint.access if endpoint else None) is not Access.PUBLIC and not (
            allowed and request.url.path in self._public
        ):
            # Before a path is said to be unknown: to strangers all of them are alike.
            role = self._doors.tokens.role_of(request.headers.get("authorization"))
        if endpoint is None:
            if allowed:
                raise MethodNotAllowed(allowed)
            raise NotFound(f"no such path: {request.url.path}")
        visit.endpoint = endpoint
        if endpoint.access is None or not permits(role, endpoint.access):
            raise Denied(f"{role} may not {endpoint.method} {endpoint.path}: {endpoint.access} is needed")
        if self._doors.live.closing and endpoint.access is not Access.PUBLIC:
            raise Unavailable("the controller is stopping")
        request.scope["path_params"] = params
        logs.bind(**{name: str(value)[:_SHOWN_MAX] for name, value in params.items()})
        return endpoint, role

    def _find(self, scope: Scope) -> tuple[Endpoint | None, dict[str, Any], list[str]]:
        """The endpoint with its path's parameters, or which methods the path has."""
        allowed: list[str] = []
        for route, endpoint in self._routes:
            match, child = route.matches(scope)
            if match is Match.FULL:
                return endpoint, child["path_params"], allowed
            if match is Match.PARTIAL:
                allowed += sorted(route.methods or ())
        return None, {}, allowed


class _Visit:
    """What is known of one request when it is over."""

    def __init__(self, request_id: str, send: Send) -> None:
        self.request_id = request_id
        self.endpoint: Endpoint | None = None
        self._send = send
        self._status: int | None = None
        self._began = time.perf_counter()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.request_id
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Cache-Control"] = "no-store"
        await self._send(message)

    def count(self, doors: Doors, method: str) -> None:
        if self._status is None:
            return
        path = self.endpoint.path if self.endpoint is not None else None
        log.debug("request_served", method=method, path=path, status=self._status)
        if self.endpoint is None:
            doors.metrics.request("any", "unmatched", self._status, None)
            return
        seconds = None if self.endpoint.lasts else time.perf_counter() - self._began
        doors.metrics.request(self.endpoint.method, self.endpoint.path, self._status, seconds)


def _shown(request: Request) -> str:
    return request.url.path[:_SHOWN_MAX]


async def _never(request: Request) -> Response:
    raise NotImplementedError


def _read_query(model: type[BaseModel], request: Request) -> BaseModel:
    """The query's parameters as the route's model.

    :raises Invalid: listing every fault, by the parameter's name.
    """
    if not request.scope["query_string"]:
        return _default(model)
    found: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, value in request.query_params.multi_items():
        field = model.model_fields.get(name)
        if field is not None and isinstance(field.get_default(call_default_factory=True), list):
            found.setdefault(name, []).append(value)
        elif name in found:
            faults.append(Fault(name, "is given twice"))
        else:
            found[name] = value
    try:
        query = model.model_validate(found)
    except ValidationError as error:
        raise Invalid([*_of_parameters(error), *faults]) from None
    if faults:
        raise Invalid(faults)
    return query


def _of_parameters(error: ValidationError) -> list[Fault]:
    unknown = "unknown field"
    return [
        Fault(
            fault.pointer.removeprefix("/").split("/")[0], fault.detail.replace(unknown, "unknown parameter")
        )
        for fault in faults_of(error)
    ]


@functools.cache
def _default(model: type[BaseModel]) -> BaseModel:
    return model()
