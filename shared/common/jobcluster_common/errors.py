"""What can go wrong: one class per thing a caller can act on, with its HTTP status and its gRPC code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a request. ``pointer`` is a JSON pointer (RFC 6901) into its body, or a parameter's name."""

    pointer: str
    detail: str


class JobclusterError(Exception):
    """The base of all. ``detail`` is for the caller: it never holds a secret or a stack."""

    status: ClassVar[int] = 500
    grpc_code: ClassVar[str] = "INTERNAL"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title


class Invalid(JobclusterError):
    """The request was understood and cannot be accepted; every fault is listed."""

    status = 422
    grpc_code = "INVALID_ARGUMENT"
    title = "Invalid request"

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(f"{f.pointer}: {f.detail}" if f.pointer else f.detail for f in faults))
        self.faults = list(faults)


class BadRequest(JobclusterError):
    """The request could not be read."""

    status = 400
    grpc_code = "INVALID_ARGUMENT"
    title = "Bad request"


class Unauthenticated(JobclusterError):
    """Nobody we know."""

    status = 401
    grpc_code = "UNAUTHENTICATED"
    title = "Not authenticated"


class Denied(JobclusterError):
    """Somebody we know, who may not do this."""

    status = 403
    grpc_code = "PERMISSION_DENIED"
    title = "Not allowed"


class NotFound(JobclusterError):
    """No such job, worker or file."""

    status = 404
    grpc_code = "NOT_FOUND"
    title = "Not found"


class Conflict(JobclusterError):
    """The state of the thing does not allow it now."""

    status = 409
    grpc_code = "FAILED_PRECONDITION"
    title = "Conflict"


class Gone(JobclusterError):
    """It was there, and is no more."""

    status = 410
    grpc_code = "NOT_FOUND"
    title = "Gone"


class TooLarge(JobclusterError):
    """The request's body is larger than is read."""

    status = 413
    grpc_code = "RESOURCE_EXHAUSTED"
    title = "Too large"


class RangeNotSatisfiable(JobclusterError):
    """An offset beyond the end of a stream."""

    status = 416
    grpc_code = "OUT_OF_RANGE"
    title = "Range not satisfiable"


class _Later(JobclusterError):
    def __init__(self, detail: str = "", retry_after: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class QueueFull(_Later):
    """Too many jobs wait already. ``retry_after`` in seconds."""

    status = 429
    grpc_code = "RESOURCE_EXHAUSTED"
    title = "Queue full"


class Unavailable(_Later):
    """It cannot be reached now. ``retry_after`` in seconds."""

    status = 503
    grpc_code = "UNAVAILABLE"
    title = "Unavailable"


class Internal(JobclusterError):
    """A fault of ours; the log has it."""
