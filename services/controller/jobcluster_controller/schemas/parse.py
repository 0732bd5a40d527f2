"""From a posted body to a checked ``JobSpec``; every fault is listed, each with its JSON pointer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

from jobcluster_common.errors import BadRequest, Fault, Invalid
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from ..domain.job import IoLimits, JobSpec, Limits, OutputOptions
from . import spec
from .spec import JobSpecBody

ARGUMENT_BYTES = 128 << 10
CONTENT_BYTES = 1 << 20
FAULTS_LISTED = 100

M = TypeVar("M", bound=BaseModel)

_KINDS = {
    "string_type": "a string",
    "list_type": "a list",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
}


def read_json(body: bytes) -> Any:
    """The body's value. The reader refuses deep nesting, NaN, and lone surrogates, which no text file can hold.

    :raises BadRequest: if it is not JSON.
    """
    if not body.strip():
        raise BadRequest("the body is empty; it must be JSON")
    try:
        return from_json(body, allow_inf_nan=False, cache_strings=False)
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def pointer(*parts: str | int) -> str:
    """A JSON pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def read_model(model: type[M], document: Any) -> M:
    """The document as ``model``.

    :raises Invalid: listing every fault.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise Invalid(faults_of(error)) from None


def faults_of(error: ValidationError) -> list[Fault]:
    """What pydantic found, in our words."""
    found = error.errors(include_url=False, include_input=False)[:FAULTS_LISTED]
    return [
        Fault(pointer(*(p for p in e["loc"] if p != "[key]")), _words(e["type"], e["msg"])) for e in found
    ]


def _words(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "unknown field"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "must be an object"
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}"
    # "Input", "String", "List" and so on: which one it is, the pointer says.
    return re.sub(r"^[A-Z][a-z]+ should", "must", message).replace("Field required", "is required")


def parse_job_spec(document: Any, path_worker_id: str | None = None) -> JobSpec:
    """The spec of a posted document, which may have come to a worker's own path.

    :raises Invalid: listing every fault.
    """
    if not isinstance(document, dict):
        raise Invalid([Fault("", "must be an object")])
    unknown = [key for key in document if key not in JobSpecBody.model_fields]
    if len(unknown) > FAULTS_LISTED:
        raise Invalid([Fault(pointer(key), "unknown field") for key in unknown[:FAULTS_LISTED]])
    faults = list(_faults_between_fields(document, path_worker_id))
    try:
        body = JobSpecBody.model_validate(document)
    except ValidationError as error:
        wrong = {e["loc"][0] for e in error.errors(include_url=False, include_input=False)}
        rest = {name: value for name, value in document.items() if name not in wrong}
        sizes = _faults_of_sizes(JobSpecBody.model_validate(rest))
        raise Invalid([*faults_of(error), *faults, *sizes]) from None
    if faults := [*faults, *_faults_of_sizes(body)]:
        raise Invalid(faults)
    return _to_domain(body, document, path_worker_id)


def _faults_between_fields(document: dict[str, Any], path_worker_id: str | None) -> Iterator[Fault]:
    if document.get("command") is None and document.get("path") is None:
        yield Fault("/command", "command or path is needed")
    named = document.get("worker_id")
    if path_worker_id is not None and named is not None and named != path_worker_id:
        yield Fault("/worker_id", f"is not the worker of the path, {path_worker_id}")
    files = document.get("files")
    files = files if isinstance(files, dict) else {}
    for name in files:
        parents = name.split("/")[:-1]
        if any("/".join(parents[: n + 1]) in files for n in range(len(parents))):
            yield Fault(pointer("files", name), "is in a folder that is also a file")


def _faults_of_sizes(body: JobSpecBody) -> Iterator[Fault]:
    words = [*(body.command or ()), *([body.path] if body.path else ()), *(body.args or ())]
    # The kernel counts each string with its final NUL, and each variable with its "=".
    arguments = sum(len(word.encode()) + 1 for word in words)
    variables = sum(len(k.encode()) + len(v.encode()) + 2 for k, v in (body.env or {}).items())
    if arguments + variables > ARGUMENT_BYTES:
        where = "/args" if arguments >= variables else "/env"
        yield Fault(where, f"args and env together are over 128 KiB ({arguments + variables} bytes)")
    files = sum(len(content) for content in (body.files or {}).values())
    if files > CONTENT_BYTES:
        yield Fault("/files", f"are over 1 MiB in all ({files} bytes)")
    if body.stdin is not None and len(body.stdin) > CONTENT_BYTES:
        yield Fault("/stdin", f"is over 1 MiB ({len(body.stdin)} bytes)")


def _to_domain(body: JobSpecBody, document: dict[str, Any], path_worker_id: str | None) -> JobSpec:
    limits = body.limits or spec.Limits()
    output = body.output or spec.OutputOptions()
    io = limits.io or spec.IoLimits()
    worker_id = path_worker_id if path_worker_id is not None else body.worker_id
    return JobSpec(
        command=body.command or (),
        path=body.path,
        args=tuple(body.args or ()),
        files=dict(body.files or {}),
        env=dict(body.env or {}),
        cwd=body.cwd,
        stdin=body.stdin,
        timeout_seconds=body.timeout_seconds,
        limits=Limits(limits.cpu, limits.memory, limits.pids, IoLimits(**io.model_dump()), limits.oom),
        network=body.network or "host",
        output=OutputOptions(**output.model_dump()),
        tasks=body.tasks or 1,
        worker_id=worker_id,
        name=body.name,
        labels=dict(body.labels or {}),
        document=_filled(document) | {"worker_id": worker_id},
    )


_DEFAULTS: dict[str, Any] = {
    name: default.model_dump() if isinstance(default, BaseModel) else default
    for name, field in JobSpecBody.model_fields.items()
    for default in [field.get_default(call_default_factory=True, validated_data={})]
}


def _filled(document: dict[str, Any]) -> dict[str, Any]:
    """The document as posted, what it leaves out or has as null filled with the defaults, one level down too."""
    filled = {
        name: default if document.get(name) is None else document[name] for name, default in _DEFAULTS.items()
    }
    for name in ("limits", "output"):
        given = {k: v for k, v in filled[name].items() if v is not None}
        filled[name] = {**_DEFAULTS[name], **given}
    filled["limits"]["io"] = {**_DEFAULTS["limits"]["io"], **filled["limits"]["io"]}
    return filled
