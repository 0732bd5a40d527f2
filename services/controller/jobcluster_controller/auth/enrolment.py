"""Enrolment: a worker's own key and a join token become a certificate that carries the id the controller minted."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from jobcluster_common import certificates
from jobcluster_common.errors import Fault, Invalid
from jobcluster_common.identity import Identity, Kind


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The cluster's CA at work. ``hours`` is how long a certificate holds."""

    ca_crt_pem: bytes
    ca_key_pem: bytes
    hours: float

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
