"""Enrolment: a worker's own key and a join token become a certificate that carries the id the controller minted."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from jobcluster_common import certificates
from jobcluster_common.errors import Fault, Invalid
from jobcluster_common.identity import Identity, Kind
from jobcluster_common.settings import SettingsError

from ..settings import EnrollmentBlock


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The cluster's CA at work. ``hours`` is how long a certificate holds."""

    ca_crt_pem: bytes
    ca_key_pem: bytes
    hours: float

    @classmethod
    def read(cls, block: EnrollmentBlock) -> Enrolment:
        """With the CA of the settings.

        :raises SettingsError: if it cannot be used.
        """
        try:
            crt, key = block.ca_crt_file.read_bytes(), block.ca_key_file.read_bytes()
            ca = certificates.load(crt, key)
        except (OSError, ValueError, TypeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a CA of ours in PEM"
            raise SettingsError(
                f"{block.ca_crt_file}: enrollment.ca_crt_file: cannot be used with ca_key_file: {reason}; make certs"
            ) from None
        if ca.certificate.public_key() != ca.key.public_key():
            raise SettingsError(
                f"{block.ca_key_file}: enrollment.ca_key_file: not the key of ca_crt_file; name the right one"
            )
        return cls(crt, key, block.certificate_hours)

    def enrol(self, csr_pem: str) -> tuple[str, str]:
        """A new worker's id and its certificate in PEM.

        :raises Invalid: if the request is not one, or not for an EC P-256 key.
        """
        worker_id = str(uuid.uuid4())
        return worker_id, self.sign(csr_pem, Identity(Kind.WORKER, worker_id))

    def sign(self, csr_pem: str, identity: Identity) -> str:
        """A certificate in PEM for ``identity``, over the request's key.

        :raises Invalid: as ``enrol``.
        """
        try:
            pem = certificates.sign_csr(
                csr_pem.encode(), self.ca_crt_pem, self.ca_key_pem, identity, self.hours
            )
        except (ValueError, TypeError) as error:
            raise Invalid([Fault("/csr", f"cannot be signed: {error}")]) from None
        return pem.decode()

    @property
    def ca_pem(self) -> str:
        return self.ca_crt_pem.decode()
