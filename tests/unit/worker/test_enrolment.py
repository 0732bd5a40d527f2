from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from jobcluster_common import certificates
from jobcluster_common.identity import CONTROLLER, Identity, Kind
from jobcluster_common.tls import TlsFiles
from jobcluster_worker.enrolment import Enrolment, Renewal, identity_of

TOKEN = "join-token"


class Controller:
    """The enrolling side: an HTTPS server that signs for the right token, or answers what it is told to."""

    def __init__(self, directory: Path) -> None:
        self.ca = certificates.make_ca()
        self.ca_file = directory / "ca.crt"
        self.ca_file.write_bytes(self.ca.crt_pem)
        self.asked: list[str] = []
        self.answers: list[tuple[int, bytes]] = []
        """Given before the honest ones."""
        self.identity: Identity | None = None
        leaf = certificates.make_leaf(self.ca, None, dns=["localhost"], ips=["127.0.0.1"])
        pem = directory / "http.pem"
        pem.write_bytes(leaf.crt_pem + leaf.key_pem)
        controller = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = controller.answer(self.path, self.headers["Authorization"], json.loads(body))
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None: ...

        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(pem)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01])
        self._thread.start()
        self.url = f"https://127.0.0.1:{self._server.server_port}/"

    def answer(self, path: str, authorization: str, body: dict[str, str]) -> tuple[int, bytes]:
        self.asked.append(authorization)
        if path != "/v1/enroll":
            return 404, b"{}"
        if authorization != f"Bearer {TOKEN}":
            return 401, b'{"title": "Not authenticated"}'
        if self.answers:
            return self.answers.pop(0)
        identity = self.identity or Identity(Kind.WORKER, f"worker-{len(self.asked)}")
        pem = certificates.sign_csr(body["csr"].encode(), self.ca.crt_pem, self.ca.key_pem, identity, 720)
        answer = {"worker_id": identity.name, "certificate": pem.decode(), "ca": self.ca.crt_pem.decode()}
        return 200, json.dumps(answer).encode()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    controller = Controller(tmp_path)
    yield controller
    controller.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    (tmp_path / "join.token").write_text(TOKEN + "\n")
    return tmp_path / "state"


def enrolment(controller: Controller, state: Path) -> Enrolment:
    return Enrolment(state, controller.ca_file, controller.url, state.parent / "join.token")


def soon() -> Iterator[float]:
    return itertools.repeat(0.01)


async def test_a_worker_enrols_once_and_is_the_same_after_a_restart(
    controller: Controller, state: Path
) -> None:
    identity = await enrolment(controller, state).ensure()
    assert identity == Identity(Kind.WORKER, "worker-1")
    modes = {path.name: path.stat().st_mode & 0o777 for path in state.iterdir()}  # noqa: ASYNC240
    assert modes == {"worker.key": 0o600, "worker.crt": 0o600}
    assert await enrolment(controller, state).ensure() == identity
    assert len(controller.asked) == 1


async def test_it_tries_until_it_gets_a_certificate_of_use_with_the_key_it_has(
    controller: Controller, state: Path
) -> None:
    controller.answers += [
        (503, b"later"),
        (200, b"not json"),
        (200, b"[]"),
        (200, b'{"certificate": 7}'),
        (200, b'{"certificate": "no certificate"}'),
        (200, json.dumps({"certificate": controller.ca.crt_pem.decode()}).encode()),
    ]
    identity = await enrolment(controller, state).ensure(soon())
    assert identity.name == "worker-7"
    assert sorted(path.name for path in state.iterdir()) == ["worker.crt", "worker.key"]  # noqa: ASYNC240


async def test_a_wrong_token_is_refused_until_the_file_holds_the_right_one(
    controller: Controller, state: Path
) -> None:
    token = state.parent / "join.token"
    token.write_text("wrong")
    enrolling = asyncio.create_task(enrolment(controller, state).ensure(soon()))
    async with asyncio.timeout(20):
        while len(controller.asked) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    token.write_text(TOKEN)
    assert (await asyncio.wait_for(enrolling, 20)).kind is Kind.WORKER


async def test_a_controller_of_another_ca_gets_neither_token_nor_request(
    controller: Controller, state: Path
) -> None:
    controller.ca_file.write_bytes(certificates.make_ca().crt_pem)

    class Enough(Exception): ...

    def three() -> Iterator[float]:
        yield from (0.0, 0.0)
        raise Enough

    with pytest.raises(Enough):
        await enrolment(controller, state).ensure(three())
    assert controller.asked == []


async def test_a_certificate_of_an_old_ca_is_exchanged_for_a_new_one(
    controller: Controller, state: Path
) -> None:
    first = await enrolment(controller, state).ensure()
    controller.ca = certificates.make_ca()
    controller.ca_file.write_bytes(controller.ca_file.read_bytes() + controller.ca.crt_pem)
    assert await enrolment(controller, state).ensure() == first  # both are trusted
    files = enrolment(controller, state).files
    files.ca_file.write_bytes(certificates.make_ca().crt_pem)
    with pytest.raises(ValueError, match="not signed by the CA"):
        identity_of(files)


def files_of(directory: Path, ca: certificates.Issued, leaf: certificates.Issued) -> TlsFiles:
    files = TlsFiles(directory / "worker.crt", directory / "worker.key", directory / "ca.crt")
    files.crt_file.write_bytes(leaf.crt_pem)
    files.key_file.write_bytes(leaf.key_pem)
    files.ca_file.write_bytes(ca.crt_pem)
    return files


def test_a_certificate_that_is_expired_anothers_or_no_workers_is_of_no_use(tmp_path: Path) -> None:
    ca = certificates.make_ca()
    worker = Identity(Kind.WORKER, "w")
    good = certificates.make_leaf(ca, worker)
    assert identity_of(files_of(tmp_path, ca, good)) == worker
    expired = certificates.make_leaf(ca, worker, days=-1 / 24 / 60)
    with pytest.raises(ValueError, match="has expired"):
        identity_of(files_of(tmp_path, ca, expired))
    with pytest.raises(ValueError, match="not for a worker"):
        identity_of(files_of(tmp_path, ca, certificates.make_leaf(ca, CONTROLLER)))
    files = files_of(tmp_path, ca, good)
    files.key_file.write_bytes(certificates.key_pem(certificates.make_key()))
    with pytest.raises(ValueError, match="not for the key"):
        identity_of(files)


def test_a_renewal_is_due_at_two_thirds_of_the_life_and_takes_the_same_workers_certificate_only(
    tmp_path: Path,
) -> None:
    ca, worker = certificates.make_ca(), Identity(Kind.WORKER, "w")
    files = files_of(tmp_path, ca, certificates.make_leaf(ca, worker, days=3))
    now = datetime.now(UTC)
    assert abs(Renewal(files).due_in_seconds() - 2 * 86400) < 600
    assert Renewal(files, lambda: now + timedelta(days=2.1)).due_in_seconds() == 0
    renewal, old = Renewal(files), files.crt_file.read_bytes()
    csr = renewal.request().encode()
    for_another = certificates.sign_csr(csr, ca.crt_pem, ca.key_pem, Identity(Kind.WORKER, "v"), 1)
    for_another_key = certificates.make_leaf(ca, worker).crt_pem
    for bad in (for_another, for_another_key, b"no certificate"):
        with pytest.raises(ValueError):
            renewal.accept(bad.decode())
        assert files.crt_file.read_bytes() == old
    renewal.accept(certificates.sign_csr(csr, ca.crt_pem, ca.key_pem, worker, 720).decode())
    assert files.crt_file.read_bytes() != old
    assert identity_of(files) == worker
    assert [path.name for path in tmp_path.glob("*.new")] == []
