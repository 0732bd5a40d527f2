"""Errors as RFC 9457 documents: every answer of 400 and above is one of these."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from jobcluster_common.errors import (
    Internal,
    Invalid,
    JobclusterError,
    QueueFull,
    RangeNotSatisfiable,
    Unauthenticated,
    Unavailable,
)

PROBLEM_MEDIA_TYPE = "application/problem+json"


class MethodNotAllowed(JobclusterError):
    """The path is one of ours, the method is not."""

    status = 405
    title = "Method not allowed"

    def __init__(self, allowed: list[str]) -> None:
        super().__init__(f"allowed here: {', '.join(allowed)}")
        self.allowed = allowed


class RequestTimeout(JobclusterError):
    """The request's body did not come in time."""

    status = 408
    title = "Request timeout"


class HeadersTooLarge(JobclusterError):
    """The request line and headers are larger than is read."""

    status = 431
    title = "Headers too large"


class HttpVersionNotSupported(JobclusterError):
    """HTTP/1.0 cannot tell the end of a stream from a cut."""

    status = 505
    title = "HTTP version not supported"


class RangeOutside(RangeNotSatisfiable):
    """A Range beyond the end of a stream of ``size_bytes``."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"the stream has {size_bytes} bytes")
        self.size_bytes = size_bytes


def problem_document(error: JobclusterError, request_id: str) -> dict[str, Any]:
    """The document for ``error``; what it says is for the caller, it never holds a secret or a stack."""
    faults = error.faults if isinstance(error, Invalid) else []
    kind = "Internal" if type(error) is JobclusterError else type(error).__name__
    slug = re.sub(r"(?<!^)(?=[A-Z])", "-", kind).lower()
    return {
        "type": f"urn:jobcluster:problem:{slug}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "errors": [{"pointer": fault.pointer, "detail": fault.detail} for fault in faults],
        "request_id": request_id,
    }


def problem(error: JobclusterError, request_id: str) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of the answer for ``error``."""
    # A detail may quote what was posted; ASCII escapes keep any of it valid.
    body = json.dumps(problem_document(error, request_id)).encode()
    return error.status, {"content-type": PROBLEM_MEDIA_TYPE, **_headers(error)}, body


def _headers(error: JobclusterError) -> Mapping[str, str]:
    match error:
        case Unauthenticated():
            return {"www-authenticate": 'Bearer realm="jobcluster"'}
        case QueueFull() | Unavailable():
            return {"retry-after": str(max(1, math.ceil(error.retry_after)))}
        case MethodNotAllowed():
            return {"allow": ", ".join(error.allowed)}
        case RangeOutside():
            return {"content-range": f"bytes */{error.size_bytes}"}
        case RequestTimeout() | HeadersTooLarge():
            return {"connection": "close"}
    return {"connection": "close"} if error.status == 413 else {}


def as_problem(error: Exception) -> JobclusterError:
    """The error to tell the caller of: ours as it is, any other as a fault of ours."""
    return error if isinstance(error, JobclusterError) else Internal("internal error; the log has it")
