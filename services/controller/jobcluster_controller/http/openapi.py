"""OpenAPI from the table of routes: spectree makes it from the very models that validate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, cast

from spectree import Response, SecurityScheme, SpecTree
from spectree.models import SecureType, SecuritySchemeData
from spectree.plugins.base import BasePlugin
from starlette.routing import compile_path

from ..auth.roles import Access
from ..schemas.documents import Problem
from .endpoint import Endpoint
from .forms import RAW, TEXT
from .problems import PROBLEM_MEDIA_TYPE

ERRORS = (400, 401, 403, 404, 408, 413, 422, 500, 503)
ERRORS_SEND = {
    401: ("WWW-Authenticate",),
    416: ("Content-Range",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}


class _Table(BasePlugin[Any]):
    """Lets spectree read our table instead of walking an application."""

    ASYNC = True
    rows: list[tuple[Endpoint, Callable[..., Any]]]

    def find_routes(self) -> Any:
        return self.rows

    def bypass(self, func: Callable[..., Any], method: str) -> bool:
        return False

    def parse_func(
        self, route: tuple[Endpoint, Callable[..., Any]]
    ) -> Iterator[tuple[str, Callable[..., Any]]]:
        endpoint, described = route
        yield endpoint.method, described

    def parse_path(
        self,
        route: tuple[Endpoint, Callable[..., Any]],
        path_parameter_descriptions: Mapping[str, str] | None,
    ) -> tuple[str, list[dict[str, Any]]]:
        _, path, names = compile_path(route[0].path)
        schema = {"type": "string", "minLength": 1}
        return path, [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]


def describe(table: Sequence[Endpoint]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the table's routes."""
    tree = SpecTree(
        backend=_Table,
        title="jobcluster",
        version=version("jobcluster-controller"),
        description="Runs programs on a cluster of workers: one call starts one job.",
        openapi_version="3.1.0",
        annotations=False,
        naming_strategy=_name,
        nested_naming_strategy=lambda _parent, child: _short(child),
        validation_error_model=Problem,
        security_schemes=[
            SecurityScheme(name="token", data=SecuritySchemeData(type=SecureType.HTTP, scheme="bearer"))
        ],
        security=[{"token": []}],
    )
    cast(_Table, tree.backend).rows = [(endpoint, _describe(tree, endpoint)) for endpoint in table]
    document: dict[str, Any] = tree.spec
    for endpoint in table:
        _complete(document["paths"][compile_path(endpoint.path)[1]][endpoint.method.lower()], endpoint)
    _close_objects(document["components"]["schemas"])
    return document


def _name(model: Any) -> str:
    return _short(model.__name__)


def _short(name: str) -> str:
    return name.removesuffix("Document").removesuffix("Body")


def _describe(tree: SpecTree, endpoint: Endpoint) -> Callable[..., Any]:
    answers: dict[str, Any] = {f"HTTP_{status}": model for status, model in endpoint.answers.items()}
    for status in {*_errors(endpoint), *endpoint.errors}:
        answers[f"HTTP_{status}"] = Problem

    async def described() -> None:
        """Stands for the handler: spectree keeps its notes by function, and one handler may serve two routes."""

    described.__name__ = endpoint.handler.__name__
    described.__doc__ = endpoint.handler.__doc__
    decorated: Callable[..., Any] = tree.validate(
        query=endpoint.query if endpoint.query.model_fields else None,
        json=endpoint.body,
        headers=endpoint.headers,
        resp=Response(**answers),
        security=[] if endpoint.access is Access.PUBLIC else None,
        operation_id=endpoint.handler.__name__,
        tags=[_tag(endpoint)],
        skip_validation=True,
    )(described)
    return decorated


def _tag(endpoint: Endpoint) -> str:
    return (
        "jobs" if "/jobs" in endpoint.path else "workers" if endpoint.path.startswith("/v1/w") else "service"
    )


def _errors(endpoint: Endpoint) -> tuple[int, ...]:
    return (500,) if endpoint.access is Access.PUBLIC else ERRORS


def _complete(operation: dict[str, Any], endpoint: Endpoint) -> None:
    """What spectree does not say: media types of problems and of streams, headers, bodies that may be absent."""
    for status, response in operation["responses"].items():
        if int(status) >= 400:
            response["content"] = {PROBLEM_MEDIA_TYPE: response["content"]["application/json"]}
        names = ("X-Request-ID", *endpoint.sends.get(int(status), ()), *ERRORS_SEND.get(int(status), ()))
        response["headers"] = {name: {"schema": {"type": "string"}} for name in names}
    operation["responses"]["default"] = {
        "description": "Any other error",
        "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status in endpoint.answers:
        response = operation["responses"][str(status)]
        for media in endpoint.media if status != 206 else (RAW, TEXT):
            text = {"type": "string"} if media != "application/octet-stream" else {}
            response.setdefault("content", {})[media] = {"schema": text}
    for parameter in operation["parameters"]:
        _never_null(parameter)
    if "requestBody" in operation:
        operation["requestBody"]["required"] = endpoint.body_required


def _never_null(parameter: dict[str, Any]) -> None:
    """A parameter is there or it is not: there is no null in a URL or a header."""
    schema = parameter["schema"]
    if schema.get("default", "") is None:
        del schema["default"]
    kinds = [kind for kind in schema.pop("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) == 1:
        schema.update(kinds[0])


def _close_objects(schema: Any) -> None:
    """pydantic says a dictionary's key rule as patternProperties, which lets every other key through."""
    if isinstance(schema, list):
        for item in schema:
            _close_objects(item)
    if not isinstance(schema, dict):
        return
    for item in schema.values():
        _close_objects(item)
    patterns = schema.get("patternProperties")
    if isinstance(patterns, dict) and "properties" not in schema and len(patterns) == 1:
        del schema["patternProperties"]
        ((pattern, value),) = patterns.items()
        schema["propertyNames"] = {"pattern": pattern}
        schema["additionalProperties"] = value
