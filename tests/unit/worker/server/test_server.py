"""The whole worker behind real mutual TLS: what the controller, the seed's stubs and strangers see of it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from jobcluster_common import certificates, tls

# isort: split
import grpc
import grpc.aio
from jobcluster.v1 import worker_pb2 as pb
from jobcluster_common.identity import CONTROLLER, Identity, Kind

from tests.unit.worker.server.cluster import SECONDS, WORKER, Controller, Pki, Worker

if TYPE_CHECKING:
    # The stubs alone know of it.
    from jobcluster.v1.worker_pb2_grpc import WorkerAsyncStub as Stub


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


@pytest.fixture
async def controller(pki: Pki) -> AsyncIterator[Controller]:
    controller = Controller(pki)
    await controller.start()
    yield controller
    await controller.stop()


@pytest.fixture
async def worker(tmp_path: Path, pki: Pki, controller: Controller) -> AsyncIterator[Worker]:
    worker = Worker(tmp_path, pki, controller)
    yield worker
    await worker.close()


@pytest.fixture
async def stub(worker: Worker) -> Stub:
    worker.start()
    return await worker.stub()


def start(job_id: str, *words: str, **more: object) -> pb.StartJobRequest:
    return pb.StartJobRequest(job_id=job_id, attempt=1, command_words=words, **more)  # type: ignore[arg-type]


async def run(stub: Stub, request: pb.StartJobRequest) -> tuple[bytes, pb.OutputEnd]:
    """Starts and reads to the end."""
    answer = await stub.StartJob(request, timeout=SECONDS)
    return await read(stub, pb.StreamJobRequest(job_id=answer.job_id))


async def read(stub: Stub, request: pb.StreamJobRequest) -> tuple[bytes, pb.OutputEnd]:
    output, end, expected = bytearray(), None, None
    async for message in stub.StreamJob(request, timeout=SECONDS):
        if message.HasField("start"):
            assert expected is None
            expected = message.start.offset
        if message.output:
            assert message.offset == expected
            assert len(message.output) <= 256 * 1024
            expected += len(message.output)
            output += message.output
        if message.HasField("end"):
            end = message.end
    assert end is not None, "cut"
    return bytes(output), end


async def refused(call: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call  # type: ignore[misc]
    return raised.value.code(), raised.value.details() or ""


async def test_a_worker_registers_with_what_it_is_and_keeps_its_lease(
    worker: Worker, stub: Stub, controller: Controller
) -> None:
    registered = await controller.until("register")
    assert registered.labels == {"zone": "a"}
    assert (registered.capacity.cpu > 0, registered.capacity.tasks) == (True, 1000)
    assert set(registered.enforced) >= {"cpu", "memory", "pids", "io"}
    beat = await controller.until("heartbeat")
    assert (beat.worker_id, beat.incarnation, beat.epoch) == (WORKER.name, registered.incarnation, 1)
    controller.forget()
    controller.known = False
    again = await controller.until("register")
    assert (again.incarnation, again.address) == (registered.incarnation, registered.address)
    controller.forget()
    await controller.stop()
    await controller.start()
    await controller.until("heartbeat")


async def test_a_batch_of_starts_is_answered_one_by_one_and_told_as_changes(stub: Stub) -> None:
    starts = [
        start("ok", "sh", "-c", "exit 3"),
        start("bad", "sh", network="moon"),
        start("ok", "sh", "-c", "exit 3"),
        start("stale", "true", epoch=1),
        start("none", "no-such-program"),
        pb.StartJobRequest(command="true"),
    ]
    answer = await stub.StartJobs(pb.StartJobsRequest(starts=starts), timeout=SECONDS)
    assert [(r.accepted, r.code) for r in answer.results] == [
        (True, ""),
        (False, "invalid"),
        (True, ""),
        (True, ""),
        (True, ""),
        (False, "invalid"),
    ]
    assert "network" in answer.results[1].error_text
    ends: dict[str, object] = {}
    acknowledgements: asyncio.Queue[pb.WatchJobsRequest] = asyncio.Queue()
    await acknowledgements.put(pb.WatchJobsRequest())

    async def requests() -> AsyncIterator[pb.WatchJobsRequest]:
        while True:
            yield await acknowledgements.get()

    watch = stub.WatchJobs(requests(), timeout=SECONDS)
    async for message in watch:
        for change in message.changes:
            if change.task.reason:
                ends[change.task.job_id] = (change.task.state, change.task.reason, change.task.exit_code)
            await acknowledgements.put(
                pb.WatchJobsRequest(stream_id=message.stream_id, acknowledged_sequence=change.sequence)
            )
        if len(ends) == 3:
            break
    watch.cancel()
    assert ends["ok"] == ("failed", "exited", 3)
    assert ends["stale"] == ("succeeded", "exited", 0)
    assert ends["none"] == ("failed", "start_failed", 0)
    known = await stub.QueryJob(pb.QueryJobRequest(job_id="none"), timeout=SECONDS)
    assert (known.done, known.error) == (True, True)
    assert "ENOENT" in known.error_text


async def test_a_start_of_an_epoch_that_is_over_is_refused(worker: Worker, controller: Controller) -> None:
    controller.epoch = 5
    worker.start()
    stub = await worker.stub()
    await controller.until("heartbeat")
    answer = await stub.StartJobs(
        pb.StartJobsRequest(starts=[start("old", "true", epoch=4), start("new", "true", epoch=5)]),
        timeout=SECONDS,
    )
    assert [(r.accepted, r.code) for r in answer.results] == [(False, "epoch"), (True, "")]
    code, text = await refused(stub.StartJob(start("older", "true", epoch=4), timeout=SECONDS))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "epoch 4 is over" in text


async def test_both_streams_and_the_merged_one_are_exact_from_any_offset_during_and_after_the_job(
    stub: Stub,
) -> None:
    script = (
        "import os\n"
        "for i in range(400):\n"
        "    os.write(1, bytes([i % 256]) * (i * 7))\n"
        "    os.write(2, b'%d\\n' % i)\n"
    )
    out = b"".join(bytes([i % 256]) * (i * 7) for i in range(400))
    err = b"".join(b"%d\n" % i for i in range(400))
    request = start("exact", "python3", "-c", script)
    await stub.StartJob(request, timeout=SECONDS)
    parts = await asyncio.gather(
        *(read(stub, pb.StreamJobRequest(job_id="exact", stream=s)) for s in ("merged", "stdout", "stderr"))
    )
    assert (parts[1][0], parts[2][0]) == (out, err)
    assert len(parts[0][0]) == len(out) + len(err)
    task = parts[0][1].task
    assert (task.state, parts[0][1].complete) == ("succeeded", True)
    for (data, _), totals in zip(
        parts, (task.output.merged, task.output.stdout, task.output.stderr), strict=True
    ):
        assert (totals.bytes, totals.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    for offset in (0, 1, len(out) // 2, len(out)):
        data, end = await read(stub, pb.StreamJobRequest(job_id="exact", stream="stdout", offset=offset))
        assert (data, end.offset, end.complete) == (out[offset:], len(out), True)
    data, end = await read(
        stub, pb.StreamJobRequest(job_id="exact", stream="stdout", limit_bytes=10, offset=7)
    )
    assert (data, end.offset, end.complete) == (out[7:17], 17, False)
    data, _ = await read(stub, pb.StreamJobRequest(job_id="exact", stream="stderr", tail_lines=2))
    assert data == b"398\n399\n"
    beyond = stub.StreamJob(
        pb.StreamJobRequest(job_id="exact", stream="stderr", offset=len(err) + 1), timeout=9
    )
    assert (await refused(beyond))[0] is grpc.StatusCode.OUT_OF_RANGE
    unknown = stub.StreamJob(pb.StreamJobRequest(job_id="exact", stream="stdall"), timeout=9)
    assert (await refused(unknown))[0] is grpc.StatusCode.INVALID_ARGUMENT
    nobody = stub.StreamJob(pb.StreamJobRequest(job_id="nobody"), timeout=9)
    assert (await refused(nobody))[0] is grpc.StatusCode.NOT_FOUND


async def test_a_snapshot_of_a_running_job_ends_and_a_follower_hears_the_end(stub: Stub) -> None:
    await stub.StartJob(start("runs", "sh", "-c", "echo one; read x < /dev/zero; sleep 600"), timeout=SECONDS)
    follower = asyncio.ensure_future(read(stub, pb.StreamJobRequest(job_id="runs")))
    data = b""
    while not data:
        data, end = await read(stub, pb.StreamJobRequest(job_id="runs", snapshot=True))
    assert (data, end.complete, end.task.state) == (b"one\n", False, "running")
    output = (await stub.QueryJob(pb.QueryJobRequest(job_id="runs"), timeout=SECONDS)).task.output
    assert (output.merged.bytes, output.stdout.bytes, output.stderr.bytes) == (4, 4, 0)
    assert (output.merged.sha256, output.available) == ("", True)
    # WINCH is ignored: without the second one it would have its whole grace.
    patient = pb.StopJobRequest(job_id="runs", signal="WINCH", grace_seconds=3600)
    await stub.StopJob(patient, timeout=SECONDS)
    stopped = await stub.StopJob(pb.StopJobRequest(job_id="runs", signal="SIGKILL"), timeout=SECONDS)
    assert stopped.state in ("running", "stopping", "stopped")
    data, end = await follower
    assert (data, end.complete, end.task.state, end.task.reason) == (b"one\n", True, "stopped", "stopped")
    assert (await stub.StopJob(pb.StopJobRequest(job_id="runs"), timeout=SECONDS)).state == "stopped"
    bad = stub.StopJob(pb.StopJobRequest(job_id="runs", signal="SIGNOTHING"), timeout=SECONDS)
    assert (await refused(bad))[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_readers_that_vanish_at_any_point_leave_nothing_in_the_server(
    worker: Worker, stub: Stub
) -> None:
    await stub.StartJob(start("long", "sh", "-c", "head -c 3000000 /dev/zero; sleep 600"), timeout=SECONDS)
    await read(stub, pb.StreamJobRequest(job_id="long", limit_bytes=3_000_000))
    descriptors = f"/proc/{worker.server_pid()}/fd"
    before = len(os.listdir(descriptors))
    for number in range(100):
        call = stub.StreamJob(pb.StreamJobRequest(job_id="long", offset=number), timeout=SECONDS)
        for _ in range(number % 12):
            await call.read()
        call.cancel()
    async with asyncio.timeout(SECONDS):
        while len(os.listdir(descriptors)) > before:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_client_of_the_seed_starts_follows_queries_and_stops_a_job_that_only_this_worker_knows(
    worker: Worker, stub: Stub
) -> None:
    seed = worker.channels[0]
    begin = seed.unary_unary(
        "/Worker/StartJob", pb.StartJobRequest.SerializeToString, pb.StartJobResponse.FromString
    )
    answer = await begin(pb.StartJobRequest(command="sh", path="hello.sh"), timeout=SECONDS)
    follow = seed.unary_stream(
        "/Worker/StreamJob", pb.StreamJobRequest.SerializeToString, pb.StreamJobResponse.FromString
    )
    # The seed's "string path = 1" sits where job_id is.
    output = b"".join(
        [m.output async for m in follow(pb.StreamJobRequest(job_id=answer.job_id), timeout=SECONDS)]
    )
    assert output == b"hello\n"
    query = seed.unary_unary(
        "/Worker/QueryJob", pb.QueryJobRequest.SerializeToString, pb.QueryJobResponse.FromString
    )
    ended = await query(pb.QueryJobRequest(job_id=answer.job_id), timeout=SECONDS)
    assert (ended.done, ended.error, ended.error_text) == (True, False, "")
    async for message in stub.WatchJobs(iter([pb.WatchJobsRequest()]), timeout=SECONDS):
        assert (list(message.changes), message.snapshot_complete) == ([], True)
        break
    stop = seed.unary_unary(
        "/Worker/StopJob", pb.StopJobRequest.SerializeToString, pb.StopJobResponse.FromString
    )
    await stop(pb.StopJobRequest(job_id=answer.job_id), timeout=SECONDS)
    missing = await begin(pb.StartJobRequest(command="sh", path="not/there.sh"), timeout=SECONDS)
    [_ async for _ in follow(pb.StreamJobRequest(job_id=missing.job_id), timeout=SECONDS)]
    failed = await query(pb.QueryJobRequest(job_id=missing.job_id), timeout=SECONDS)
    assert (failed.done, failed.error) == (True, True)
    assert "not/there.sh" in failed.error_text


async def test_nobody_but_the_controller_is_answered(worker: Worker, stub: Stub, tmp_path: Path) -> None:
    request = pb.QueryJobRequest(job_id="none")
    assert (await refused(stub.QueryJob(request, timeout=9)))[0] is grpc.StatusCode.NOT_FOUND
    for identity in (WORKER, Identity(Kind.WORKER, "worker-2"), Identity(Kind.USER, "admin")):
        stranger = await worker.stub(identity)
        assert (await refused(stranger.QueryJob(request, timeout=9)))[0] is grpc.StatusCode.PERMISSION_DENIED
        streams = stranger.StreamJob(pb.StreamJobRequest(job_id="none"), timeout=9)
        assert (await refused(streams))[0] is grpc.StatusCode.PERMISSION_DENIED
        watch = stranger.WatchJobs(iter([pb.WatchJobsRequest()]), timeout=9)
        assert (await refused(watch))[0] is grpc.StatusCode.PERMISSION_DENIED
    others = Pki(tmp_path / "other").leaf(CONTROLLER)
    forged = await worker.stub(files=tls.TlsFiles(others.crt_file, others.key_file, worker.pki.ca_file))
    assert (await refused(forged.QueryJob(request, timeout=3)))[0] in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )
    reasons = [entry["reason"] for entry in worker.log if entry["event"] == "rpc_refused"]
    assert any("user/admin may not call" in reason for reason in reasons)


async def test_the_death_of_the_server_disturbs_no_job_and_its_successor_has_the_same_address(
    worker: Worker, stub: Stub, controller: Controller
) -> None:
    script = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo $i; sleep 0.02; done; exit 5"
    starts = [start(f"counts-{n}", "sh", "-c", script) for n in range(5)]
    await stub.StartJobs(pb.StartJobsRequest(starts=starts), timeout=SECONDS)
    registered = await controller.until("register")
    controller.forget()
    os.kill(worker.server_pid(), signal.SIGKILL)
    again = await controller.until("register")
    assert (again.incarnation, again.address) == (registered.incarnation, registered.address)
    stub = await worker.stub()
    for n in range(5):
        data, end = await read(stub, pb.StreamJobRequest(job_id=f"counts-{n}"))
        assert data.decode().split() == [str(i) for i in range(1, 61)]
        assert (end.task.state, end.task.exit_code) == ("failed", 5)


async def test_sigterm_stops_jobs_hands_their_ends_over_deregisters_and_exits_with_0(
    worker: Worker, stub: Stub, controller: Controller
) -> None:
    script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    await stub.StartJob(start("polite", "sh", "-c", script), timeout=SECONDS)
    await read(stub, pb.StreamJobRequest(job_id="polite", limit_bytes=3))
    acknowledgements: asyncio.Queue[pb.WatchJobsRequest] = asyncio.Queue()
    await acknowledgements.put(pb.WatchJobsRequest())

    async def requests() -> AsyncIterator[pb.WatchJobsRequest]:
        while True:
            yield await acknowledgements.get()

    watch = stub.WatchJobs(requests(), timeout=SECONDS)
    messages = aiter(watch)
    assert (await anext(messages)).snapshot_complete
    worker.signal(signal.SIGTERM)
    assert (await controller.until("heartbeat", lambda beat: beat.draining)).running <= 1
    answer = await stub.StartJobs(pb.StartJobsRequest(starts=[start("more", "true")]), timeout=SECONDS)
    assert [(r.accepted, r.code) for r in answer.results] in ([(False, "draining")], [])
    async for message in messages:
        for change in message.changes:
            if change.task.reason:
                assert (change.task.state, change.task.reason) == ("stopped", "worker_shutdown")
                controller.forget()
                await acknowledgements.put(
                    pb.WatchJobsRequest(stream_id=message.stream_id, acknowledged_sequence=change.sequence)
                )
        if change.task.reason:
            break
    gone = await controller.until("deregister")
    assert (gone.worker_id, bool(gone.incarnation)) == (WORKER.name, True)
    assert await worker.wait() == 0
    assert "register" not in [name for name, _ in controller.heard]


async def test_an_idle_worker_is_there_until_its_slow_controller_has_taken_it_off_the_list(
    worker: Worker, stub: Stub, controller: Controller
) -> None:
    await controller.until("heartbeat")
    controller.deregistration_seconds = 0.5
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0
    await controller.until("deregister")
    events = [entry["event"] for entry in worker.log]
    assert "worker_deregistered" in events and "process_failed" not in events


async def test_sigterm_ends_a_worker_whose_controller_is_gone_in_time(
    worker: Worker, stub: Stub, controller: Controller
) -> None:
    await stub.StartJob(start("runs", "sleep", "600"), timeout=SECONDS)
    await controller.stop()
    loop = asyncio.get_running_loop()
    began = loop.time()
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0
    assert loop.time() - began < 2 + 1 + 5
    # The end that nobody took is told by the next life of this worker.
    await controller.start()
    controller.forget()
    worker.start()
    stub = await worker.stub()
    async for message in stub.WatchJobs(iter([pb.WatchJobsRequest()]), timeout=SECONDS):
        assert [(c.task.job_id, c.task.state, c.task.reason) for c in message.changes] == [
            ("runs", "stopped", "worker_shutdown")
        ]
        break


async def test_a_certificate_of_two_thirds_of_its_life_is_renewed_and_jobs_do_not_notice(
    worker: Worker, controller: Controller, pki: Pki
) -> None:
    state = worker.directory / "state"
    state.mkdir()
    # Back-dated by five minutes, it has lived two thirds of its life when it is made.
    aged = certificates.make_leaf(pki.ca, WORKER, days=2.5 / 24 / 60)
    (state / "worker.crt").write_bytes(aged.crt_pem)
    certificates.write_private(state / "worker.key", aged.key_pem)
    worker.start(grpc_server={"crt_file": None, "key_file": None})
    await controller.until("register")
    await controller.until("renew")
    controller.forget()
    again = await controller.until("register")
    assert again.address
    fresh = (state / "worker.crt").read_bytes()
    assert fresh != aged.crt_pem
    assert certificates.identity_of(fresh) == WORKER
    stub = await worker.stub()
    data, end = await run(stub, start("after", "echo", "renewed"))
    assert (data, end.complete) == (b"renewed\n", True)
