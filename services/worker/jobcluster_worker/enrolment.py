"""How a worker comes to its identity: its own key, and a certificate that the controller signs for the join token.

Key and certificate stay in the state directory, so the worker is the same one after a restart.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from jobcluster_common import certificates
from jobcluster_common.identity import Identity, Kind
from jobcluster_common.tls import TlsFiles

from jobcluster_worker.backoff import delays

log = structlog.get_logger()

REQUEST_SECONDS = 10.0
_ANSWER_BYTES = 1 << 20
_LIFE_BEFORE_RENEWAL = 2 / 3


class Refused(Exception):
    """The controller did not enrol us: its answer, or what is wrong with it."""


def identity_of(files: TlsFiles) -> Identity:
    """The worker's identity, as its certificate says it.

    :raises ValueError: if it is not a worker's, not for the key beside it, not of the CA beside it, or expired
    :raises OSError: if a file cannot be read
    """
    crt_pem, key_pem, ca_pem = files.read()
    issued = certificates.load(crt_pem, key_pem)
    if issued.certificate.public_key() != issued.key.public_key():
        raise ValueError(f"{files.crt_file} is not for the key in {files.key_file}")
    if not any(_issued_by(issued.certificate, ca) for ca in x509.load_pem_x509_certificates(ca_pem)):
        raise ValueError(f"{files.crt_file} is not signed by the CA in {files.ca_file}")
    if certificates.expires_at(crt_pem) <= datetime.now(UTC):
        raise ValueError(f"{files.crt_file} has expired")
    identity = certificates.identity_of(crt_pem)
    if identity.kind is not Kind.WORKER:
        raise ValueError(f"{files.crt_file} is for {identity}, not for a worker")
    return identity


class Enrolment:
    """Enrols one worker, once. ``url`` is the controller's HTTPS server."""

    def __init__(self, state_directory: Path, ca_file: Path, url: str, join_file: Path | None) -> None:
        self.files = TlsFiles(state_directory / "worker.crt", state_directory / "worker.key", ca_file)
        self._url = url.rstrip("/") + "/v1/enroll"
        self._join_file = join_file

    async def ensure(self, waits: Iterator[float] | None = None) -> Identity:
        """The identity from an earlier time, else enrols, and tries until the controller answers.

        :raises OSError: if the state directory cannot be written
        """
        try:
            return identity_of(self.files)
        except FileNotFoundError:
            pass
        except ValueError as error:
            # Somebody made a new CA, or the machine slept too long: a new certificate, and so a new worker.
            log.warning("certificate_unusable", reason=str(error))
        waits = waits or delays()
        while True:
            try:
                identity = await self._enrol()
            except Refused as error:
                wait = next(waits)
                log.warning(
                    "enrolment_failed", url=self._url, reason=str(error), retry_seconds=round(wait, 2)
                )
                await asyncio.sleep(wait)
            else:
                log.info("worker_enrolled", worker_id=identity.name)
                return identity

    async def _enrol(self) -> Identity:
        csr_pem = certificates.make_csr(_own_key(self.files.key_file))
        answer = await self._post(csr_pem.decode())
        certificate = answer.get("certificate")
        if not isinstance(certificate, str):
            raise Refused("the answer has no certificate")
        # Looked at before it is kept: a certificate that cannot serve must not replace the wish for one.
        candidate = self.files.crt_file.with_suffix(".new")
        certificates.write_private(candidate, certificate.encode())
        try:
            identity = identity_of(TlsFiles(candidate, self.files.key_file, self.files.ca_file))
        except ValueError as error:
            candidate.unlink()
            raise Refused(f"the certificate is of no use: {error}") from None
        candidate.replace(self.files.crt_file)
        return identity

    async def _post(self, csr_pem: str) -> dict[str, object]:
        # Imported when it is needed: most starts find a certificate, and the library's memory is not used again.
        import httpx2

        try:
            token = "" if self._join_file is None else self._join_file.read_text().strip()
            context = ssl.create_default_context(cafile=str(self.files.ca_file))
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            async with httpx2.AsyncClient(verify=context, timeout=REQUEST_SECONDS, trust_env=False) as client:
                answer = await client.post(
                    self._url, json={"csr": csr_pem}, headers={"Authorization": f"Bearer {token}"}
                )
            if answer.status_code not in (200, 201):
                raise Refused(f"status {answer.status_code}: {answer.text[:200]}")
            document = answer.json() if len(answer.content) <= _ANSWER_BYTES else None
        except (httpx2.HTTPError, OSError, ValueError) as error:
            raise Refused(f"{type(error).__name__}: {error}") from error
        if not isinstance(document, dict):
            raise Refused("the answer is not a JSON object")
        return document


class Renewal:
    """A certificate's second life: when it is due, and how it is exchanged."""

    def __init__(self, files: TlsFiles, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._files = files
        self._now = now

    def due_in_seconds(self) -> float:
        """Until two thirds of the certificate's life are over; 0 when they are.

        :raises OSError, ValueError: if the certificate cannot be read
        """
        certificate = x509.load_pem_x509_certificate(self._files.crt_file.read_bytes())
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return max(0.0, (begin + (end - begin) * _LIFE_BEFORE_RENEWAL - self._now()).total_seconds())

    def request(self) -> str:
        """A request in PEM for the key we have."""
        return certificates.make_csr(_own_key(self._files.key_file)).decode()

    def accept(self, certificate_pem: str) -> None:
        """Puts the new certificate in the place of the old one.

        :raises ValueError: if it is not for the same worker, or of no use; the old one stays then
        :raises OSError: if it cannot be written
        """
        own = identity_of(self._files)
        candidate = self._files.crt_file.with_suffix(".new")
        certificates.write_private(candidate, certificate_pem.encode())
        try:
            found = identity_of(TlsFiles(candidate, self._files.key_file, self._files.ca_file))
            if found != own:
                raise ValueError(f"the new certificate is for {found}, not for {own}")
        except ValueError:
            candidate.unlink()
            raise
        candidate.replace(self._files.crt_file)


def _own_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key
    except (FileNotFoundError, ValueError):
        pass
    key = certificates.make_key()
    certificates.write_private(path, certificates.key_pem(key))
    return key


def _issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
