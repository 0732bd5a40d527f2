import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from jobcluster.v1 import worker_pb2, worker_pb2_grpc
from jobcluster_common import rpc, tls
from jobcluster_common.certificates import Issued, make_ca
from jobcluster_common.errors import Conflict, Fault, Invalid, Unavailable
from jobcluster_common.identity import CONTROLLER, Identity, Kind
from jobcluster_common.tls import TlsFiles
from structlog.testing import capture_logs

NAMES = ("jobcluster.v1.Worker", "Worker")
SERVICE = worker_pb2.DESCRIPTOR.services_by_name["Worker"]
POLICY: rpc.Policy = {method.name: frozenset({Kind.CONTROLLER}) for method in SERVICE.methods}
WORKER = Identity(Kind.WORKER, "w-1")
Write = Callable[..., TlsFiles]


class Servicer(worker_pb2_grpc.WorkerServicer):
    """Answers each kind of call, and fails in each way a real one may."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def StartJob(
        self, request: worker_pb2.StartJobRequest, context: Any
    ) -> worker_pb2.StartJobResponse:
        failures: Mapping[str, Exception] = {
            "conflict": Conflict("not now"),
            "invalid": Invalid([Fault("/command", "empty"), Fault("/env", "NUL")]),
            "unavailable": Unavailable("later", retry_after=2.5),
            "bug": RuntimeError("a secret"),
        }
        if request.job_id in failures:
            raise failures[request.job_id]
        return worker_pb2.StartJobResponse(job_id=str(rpc.current_identity.get()))

    async def StreamJob(
        self, request: worker_pb2.StreamJobRequest, context: Any
    ) -> AsyncIterator[worker_pb2.StreamJobResponse]:
        try:
            yield worker_pb2.StreamJobResponse(output=str(rpc.current_identity.get()).encode())
            if request.job_id == "conflict":
                raise Conflict("cut")
            if request.job_id == "for ever":
                await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def WatchJobs(
        self, requests: AsyncIterator[worker_pb2.WatchJobsRequest], context: Any
    ) -> AsyncIterator[worker_pb2.WatchJobsResponse]:
        async for request in requests:
            yield worker_pb2.WatchJobsResponse(stream_id=request.stream_id)

    async def StartJobs(
        self, request: worker_pb2.StartJobsRequest, context: Any
    ) -> worker_pb2.StartJobsResponse:
        raise NotImplementedError

    async def StopJob(self, request: worker_pb2.StopJobRequest, context: Any) -> worker_pb2.StopJobResponse:
        raise NotImplementedError

    async def QueryJob(
        self, request: worker_pb2.QueryJobRequest, context: Any
    ) -> worker_pb2.QueryJobResponse:
        raise NotImplementedError


class Served:
    def __init__(self, port: int, servicer: Servicer) -> None:
        self.port = port
        self.servicer = servicer

    def channel(self, files: TlsFiles | None, peer: Identity = WORKER) -> grpc.aio.Channel:
        return tls.channel(f"127.0.0.1:{self.port}", files, peer)


@pytest.fixture
async def served(write_files: Write) -> AsyncIterator[Served]:
    server = grpc.aio.server(options=tls.SERVER_OPTIONS)
    servicer = Servicer()
    rpc.add_service(server, NAMES, SERVICE, servicer, POLICY)
    rpc.add_health_and_reflection(server, NAMES[:1], frozenset({Kind.CONTROLLER}))
    port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(write_files("server", WORKER)))
    await server.start()
    yield Served(port, servicer)
    await server.stop(None)


async def start(channel: grpc.aio.Channel, job_id: str = "") -> str:
    async with channel:
        stub = worker_pb2_grpc.WorkerStub(channel)
        response = await stub.StartJob(worker_pb2.StartJobRequest(job_id=job_id), timeout=5)
        return response.job_id


async def failure(channel: grpc.aio.Channel, job_id: str = "") -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await start(channel, job_id)
    return caught.value


async def test_a_permitted_caller_is_let_in_and_known_by_its_identity(
    served: Served, write_files: Write
) -> None:
    assert await start(served.channel(write_files("c", CONTROLLER))) == CONTROLLER.uri


async def test_streams_pass_both_ways(served: Served, write_files: Write) -> None:
    async with served.channel(write_files("c", CONTROLLER)) as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)
        chunks = [m.output async for m in stub.StreamJob(worker_pb2.StreamJobRequest(), timeout=5)]
        assert chunks == [CONTROLLER.uri.encode()]
        requests = [worker_pb2.WatchJobsRequest(stream_id=s) for s in "ab"]
        assert [m.stream_id async for m in stub.WatchJobs(iter(requests), timeout=5)] == ["a", "b"]


async def test_the_seeds_bare_service_name_is_served_too(served: Served, write_files: Write) -> None:
    async with served.channel(write_files("c", CONTROLLER)) as channel:
        call = channel.unary_unary(
            "/Worker/StartJob",
            request_serializer=worker_pb2.StartJobRequest.SerializeToString,
            response_deserializer=worker_pb2.StartJobResponse.FromString,
        )
        assert (await call(worker_pb2.StartJobRequest(), timeout=5)).job_id == CONTROLLER.uri


@pytest.mark.parametrize("identity", [WORKER, Identity(Kind.USER, "ana")])
async def test_another_kind_is_denied_and_the_reason_logged(
    served: Served, write_files: Write, identity: Identity
) -> None:
    with capture_logs() as logs:
        error = await failure(served.channel(write_files("c", identity)))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    (refusal,) = [entry for entry in logs if entry["event"] == "rpc_refused"]
    assert refusal["identity"] == identity.uri
    assert refusal["rpc"] == "jobcluster.v1.Worker.StartJob"
    assert refusal["peer"].startswith("ipv4:127.0.0.1:")
    assert "may not call" in refusal["reason"]


# The stubs of these two libraries know of synchronous channels only.
def health_stub(channel: Any) -> Any:
    return health_pb2_grpc.HealthStub(channel)


def reflection_stub(channel: Any) -> Any:
    return reflection_pb2_grpc.ServerReflectionStub(channel)


async def test_streams_health_and_reflection_are_guarded_alike(served: Served, write_files: Write) -> None:
    async with served.channel(write_files("c", WORKER)) as channel:
        reflect = reflection_pb2.ServerReflectionRequest(list_services="")
        calls: list[Any] = [
            worker_pb2_grpc.WorkerStub(channel).StreamJob(worker_pb2.StreamJobRequest(), timeout=5),
            health_stub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=5),
            reflection_stub(channel).ServerReflectionInfo(iter([reflect]), timeout=5),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_health_and_reflection_answer_who_may_ask(served: Served, write_files: Write) -> None:
    async with served.channel(write_files("c", CONTROLLER)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        listed = await reflection_stub(channel).ServerReflectionInfo(iter(asked), timeout=5).read()
        assert "jobcluster.v1.Worker" in [s.name for s in listed.list_services_response.service]


async def test_a_certificate_without_an_identity_is_nobody(served: Served, write_files: Write) -> None:
    error = await failure(served.channel(write_files("c", None, dns=["controller.jobcluster"])))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_certificate_of_another_ca_an_expired_one_and_none_are_refused(
    served: Served, write_files: Write, ca: Issued
) -> None:
    for files in (
        write_files("other", CONTROLLER, signer=make_ca()),
        write_files("expired", CONTROLLER, days=-0.001),
        write_files("server-only", CONTROLLER, client=False),
    ):
        assert (await failure(served.channel(files))).code() is grpc.StatusCode.UNAVAILABLE
    options = [("grpc.ssl_target_name_override", WORKER.dns_name)]
    bare = grpc.ssl_channel_credentials(root_certificates=ca.crt_pem)
    channel = grpc.aio.secure_channel(f"127.0.0.1:{served.port}", bare, options=options)
    assert (await failure(channel)).code() is grpc.StatusCode.UNAVAILABLE
    assert (await failure(served.channel(None))).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_that_is_not_the_peer_meant_is_refused_by_the_client(
    served: Served, write_files: Write
) -> None:
    files = write_files("c", CONTROLLER)
    for peer in (CONTROLLER, Identity(Kind.WORKER, "w-2")):
        assert (await failure(served.channel(files, peer))).code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_only_tls_1_3_is_spoken(served: Served, write_files: Write, version: ssl.TLSVersion) -> None:
    files = write_files("c", CONTROLLER)
    context = ssl.create_default_context(cafile=files.ca_file)
    context.load_cert_chain(files.crt_file, files.key_file)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    opened = asyncio.open_connection("127.0.0.1", served.port, ssl=context, server_hostname=WORKER.dns_name)
    if version is ssl.TLSVersion.TLSv1_2:
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            await opened
        return
    _, writer = await opened
    assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
    writer.close()


@pytest.mark.parametrize(
    ("job_id", "code", "detail"),
    [
        ("conflict", grpc.StatusCode.FAILED_PRECONDITION, "not now"),
        ("invalid", grpc.StatusCode.INVALID_ARGUMENT, "/command: empty; /env: NUL"),
        ("unavailable", grpc.StatusCode.UNAVAILABLE, "later"),
        ("bug", grpc.StatusCode.INTERNAL, "internal error; the log has it"),
    ],
)
async def test_errors_become_statuses_and_a_bug_tells_the_caller_nothing(
    served: Served, write_files: Write, job_id: str, code: grpc.StatusCode, detail: str
) -> None:
    with capture_logs() as logs:
        error = await failure(served.channel(write_files("c", CONTROLLER)), job_id)
    assert (error.code(), error.details()) == (code, detail)
    if job_id == "unavailable":
        assert dict(error.trailing_metadata())["retry-after"] == "2.5"
    assert [entry["event"] for entry in logs] == ["rpc_failed"] * (job_id == "bug")


async def test_an_error_in_the_middle_of_a_stream_becomes_its_status(
    served: Served, write_files: Write
) -> None:
    async with served.channel(write_files("c", CONTROLLER)) as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)
        call = stub.StreamJob(worker_pb2.StreamJobRequest(job_id="conflict"), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [m async for m in call]
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_caller_that_goes_away_closes_the_handlers_stream(served: Served, write_files: Write) -> None:
    async with served.channel(write_files("c", CONTROLLER)) as channel:
        stub: Any = worker_pb2_grpc.WorkerStub(channel)
        call = stub.StreamJob(worker_pb2.StreamJobRequest(job_id="for ever"), timeout=60)
        await call.read()
        call.cancel()
        await asyncio.wait_for(served.servicer.closed.wait(), 5)


async def test_an_rpc_that_is_not_built_is_unimplemented(served: Served, write_files: Write) -> None:
    async with served.channel(write_files("c", CONTROLLER)) as channel:
        stub: Any = worker_pb2_grpc.WorkerStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.StopJob(worker_pb2.StopJobRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_method_without_a_policy_and_a_policy_without_a_method_stop_the_start() -> None:
    server = grpc.aio.server()
    lacking = {name: kinds for name, kinds in POLICY.items() if name != "StopJob"}
    with pytest.raises(ValueError, match=r"jobcluster\.v1\.Worker\.StopJob"):
        rpc.add_service(server, NAMES, SERVICE, Servicer(), lacking)
    with pytest.raises(ValueError, match=r"Stop$"):
        rpc.add_service(server, NAMES, SERVICE, Servicer(), {**POLICY, "Stop": frozenset()})


async def test_plain_text_is_only_who_it_says_it_is_and_the_policy_holds() -> None:
    server = grpc.aio.server()
    rpc.add_service(server, NAMES, SERVICE, Servicer(), POLICY, insecure=True)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    served = Served(port, Servicer())
    assert await start(served.channel(None)) == CONTROLLER.uri
    async with served.channel(None) as channel:
        stub: Any = worker_pb2_grpc.WorkerStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.StartJob(
                worker_pb2.StartJobRequest(), timeout=5, metadata=rpc.plain_text_metadata(WORKER)
            )
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    await server.stop(None)


async def test_a_replaced_certificate_is_served_to_new_connections(
    write_files: Write, tmp_path: Path
) -> None:
    server = grpc.aio.server(options=tls.SERVER_OPTIONS)
    rpc.add_service(server, NAMES, SERVICE, Servicer(), POLICY)
    port = server.add_secure_port("127.0.0.1:0", tls.server_credentials(write_files("server", WORKER)))
    await server.start()
    served, files = Served(port, Servicer()), write_files("c", CONTROLLER)
    renamed = Identity(Kind.WORKER, "w-2")
    assert (await failure(served.channel(files, renamed))).code() is grpc.StatusCode.UNAVAILABLE
    write_files("server", renamed)
    assert await start(served.channel(files, renamed)) == CONTROLLER.uri
    (tmp_path / "server.key").unlink()  # half-way through the next exchange: the old one serves on
    assert await start(served.channel(files, renamed)) == CONTROLLER.uri
    await server.stop(None)


async def test_a_taken_port_is_refused_not_shared(served: Served, write_files: Write) -> None:
    server = grpc.aio.server(options=tls.SERVER_OPTIONS)
    with pytest.raises(RuntimeError, match="Failed to bind"):
        server.add_secure_port(f"127.0.0.1:{served.port}", tls.server_credentials(write_files("s", WORKER)))
