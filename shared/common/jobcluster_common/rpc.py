"""The one door in for gRPC: who calls, whether they may, and how our errors become statuses."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog

from . import logs, tls  # noqa: F401  (tls before grpc)

# isort: split
import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from .errors import Denied, JobclusterError, QueueFull, Unauthenticated, Unavailable
from .identity import CONTROLLER, Identity, Kind
from .logs import REQUEST_ID

log = structlog.get_logger()

Policy = Mapping[str, frozenset[Kind]]
current_identity: contextvars.ContextVar[Identity] = contextvars.ContextVar("current_identity")

# Who one says to be where there is no TLS (loopback only): nobody can check it there.
PLAIN_TEXT_IDENTITY = "jobcluster-identity"

# Fields of a request that say what it is about.
_IDS = frozenset({"job_id", "task_rank", "attempt"})


def peer_identity(context: Any) -> Identity:
    """The caller's identity, from the certificate of this very connection.

    :raises Unauthenticated: without exactly one URI that is an identity, or below TLS 1.3.
    """
    found: Mapping[str, Sequence[bytes]] = context.auth_context()
    version = b"".join(found.get("ssl_tls_version", ())).decode()
    if version != "TLSv1.3":
        raise Unauthenticated(f"TLS 1.3 is required, not {version or 'plain text'}")
    # peer_identities() would list every SAN, "localhost" too; only the one URI is who they are.
    uris = [uri.decode("utf-8", "replace") for uri in found.get("peer_uri", ())]
    if len(uris) != 1:
        raise Unauthenticated(f"the certificate has {len(uris)} URIs, not one")
    try:
        return Identity.parse(uris[0])
    except ValueError as error:
        raise Unauthenticated(str(error)) from None


def request_metadata() -> tuple[tuple[str, str], ...]:
    """What to send with a call made for a request, so that the other side's events carry its id too."""
    request_id = logs.bound("request_id")
    return ((REQUEST_ID, request_id),) if isinstance(request_id, str) else ()


def plain_text_metadata(identity: Identity) -> tuple[tuple[str, str], ...]:
    """What a client sends with each call where there is no TLS."""
    return ((PLAIN_TEXT_IDENTITY, identity.uri),)


def add_service(
    server: grpc.aio.Server,
    names: Sequence[str],
    service_descriptor: ServiceDescriptor,
    servicer: object,
    policy: Policy,
    insecure: bool = False,
) -> None:
    """Serves ``servicer`` under each of ``names``; each call is checked against ``policy`` first.

    :raises ValueError: if a method has no policy, or a policy no method.
    """
    methods = {m.name: m for m in service_descriptor.methods}
    for missing in methods.keys() - policy.keys():
        raise ValueError(f"no policy says who may call {service_descriptor.full_name}.{missing}")
    for extra in policy.keys() - methods.keys():
        raise ValueError(f"the policy of {service_descriptor.full_name} names an unknown method: {extra}")
    for name in names:
        handlers = {
            method.name: _handler(
                method,
                _Door(f"{name}.{method.name}", policy[method.name], insecure),
                getattr(servicer, method.name),
            )
            for method in service_descriptor.methods
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))


def add_health_and_reflection(
    server: grpc.aio.Server, names: Sequence[str], kinds: frozenset[Kind], insecure: bool = False
) -> health.aio.HealthServicer:
    """Serves grpc.health.v1 and reflection for ``names`` to ``kinds``; the caller sets the health's statuses."""
    statuses = health.aio.HealthServicer()
    health_descriptor = health_pb2.DESCRIPTOR.services_by_name["Health"]
    reflection_descriptor = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    known = [*names, health_descriptor.full_name, reflection_descriptor.full_name]
    pairs: list[tuple[Any, object]] = [
        (health_descriptor, statuses),
        (reflection_descriptor, reflection.aio.ReflectionServicer(known)),
    ]
    for descriptor, servicer in pairs:
        policy = {method.name: kinds for method in descriptor.methods}
        add_service(server, [descriptor.full_name], descriptor, servicer, policy, insecure)
    return statuses


@dataclass(frozen=True, slots=True)
class _Door:
    rpc: str
    kinds: frozenset[Kind]
    insecure: bool
    ids: tuple[str, ...] = ()

    def enter(self, context: Any, request: Any) -> None:
        """Lets the caller in, and makes known who it is, also to the events of this call.

        :raises Unauthenticated: if it is nobody.
        :raises Denied: if it may not call this.
        """
        metadata = dict(context.invocation_metadata() or ())
        logs.bind(request_id=logs.request_id(str(metadata.get(REQUEST_ID, ""))))
        identity: Identity | None = None
        try:
            identity = self._claimed(metadata) if self.insecure else peer_identity(context)
            if identity.kind not in self.kinds:
                raise Denied(f"{identity} may not call {self.rpc}")
        except (Unauthenticated, Denied) as error:
            who = str(identity) if identity else None
            log.warning("rpc_refused", rpc=self.rpc, peer=context.peer(), identity=who, reason=error.detail)
            raise
        # Each call has a task, and so a context, of its own: nothing to put back.
        current_identity.set(identity)
        if identity.kind is Kind.WORKER:
            logs.bind(worker_id=identity.name)
        if self.ids:
            named = {name: getattr(request, name) for name in self.ids}
            # An attempt of 0, or no job id, is none in particular.
            logs.bind(**{name: value for name, value in named.items() if value or name == "task_rank"})

    def _claimed(self, metadata: Mapping[str, object]) -> Identity:
        uri = metadata.get(PLAIN_TEXT_IDENTITY)
        if uri is None and Kind.CONTROLLER in self.kinds:
            return CONTROLLER
        try:
            return Identity.parse(str(uri or ""))
        except ValueError as error:
            raise Unauthenticated(str(error)) from None

    async def refuse(self, context: Any, error: Exception) -> None:
        """Ends the call with the status for ``error``."""
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if isinstance(error, NotImplementedError):
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{self.rpc} is not served here")
        if not isinstance(error, JobclusterError):
            log.error("rpc_failed", rpc=self.rpc, peer=context.peer(), exc_info=error)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error; the log has it")
            return
        trailing = ()
        if isinstance(error, QueueFull | Unavailable):
            trailing = (("retry-after", f"{error.retry_after:g}"),)  # type: ignore[assignment]
        await context.abort(grpc.StatusCode[error.grpc_code], error.detail, trailing)


def _handler(
    method: MethodDescriptor, door: _Door, behaviour: Callable[..., Any]
) -> grpc.RpcMethodHandler[Any, Any]:
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    streams = method.server_streaming and inspect.isasyncgenfunction(behaviour)
    if not method.client_streaming:
        ids = tuple(field.name for field in method.input_type.fields if field.name in _IDS)
        door = replace(door, ids=ids)
    return kinds[method.client_streaming, method.server_streaming](
        _guard_stream(door, behaviour) if streams else _guard_call(door, behaviour),
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


def _guard_call(door: _Door, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    async def call(request: Any, context: Any) -> Any:
        try:
            door.enter(context, request)
            answer = await behaviour(request, context)
        except Exception as error:
            await door.refuse(context, error)
        else:
            log.debug("rpc_served", rpc=door.rpc)
            return answer

    return call


def _guard_stream(door: _Door, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            door.enter(context, request)
            # When the caller vanishes this generator is closed, and must close the inner one with it.
            async with contextlib.aclosing(behaviour(request, context)) as messages:
                async for message in messages:
                    yield message
        except Exception as error:
            await door.refuse(context, error)
        else:
            log.debug("rpc_served", rpc=door.rpc)

    return stream
