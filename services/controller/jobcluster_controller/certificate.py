"""The HTTPS server's certificate: the one that is given, or one made at the start and kept nowhere."""

from __future__ import annotations

import os
import ssl

from jobcluster_common import certificates
from jobcluster_common.settings import SettingsError

from .auth.enrolment import Enrolment
from .http.server import tls_context
from .settings import HttpServerBlock

NAMES = ("localhost", "127.0.0.1", "controller")


def http_context(block: HttpServerBlock, enrolment: Enrolment) -> ssl.SSLContext:
    """TLS 1.3 with the certificate of ``block``, or with one for its names that the cluster's CA signs now.

    :raises SettingsError: if the files cannot be used or do not fit each other.
    """
    if block.crt_file is not None and block.key_file is not None:
        try:
            return tls_context(str(block.crt_file), str(block.key_file))
        except OSError as error:
            reason = error.strerror or error
            raise SettingsError(
                f"{block.crt_file}: http_server.crt_file: cannot be used with key_file: {reason}; make certs"
            ) from None
    dns, ips = certificates.split_names([*NAMES, *block.names])
    ca = certificates.load(enrolment.ca_crt_pem, enrolment.ca_key_pem)
    leaf = certificates.make_leaf(ca, None, dns, ips, client=False)
    # ssl loads from files only; these have no name on any disk.
    crt, key = _anonymous(leaf.crt_pem), _anonymous(leaf.key_pem)
    try:
        return tls_context(f"/proc/self/fd/{crt}", f"/proc/self/fd/{key}")
    finally:
        os.close(crt)
        os.close(key)


def _anonymous(content: bytes) -> int:
    descriptor = os.memfd_create("jobcluster-certificate", os.MFD_CLOEXEC)
    os.write(descriptor, content)
    return descriptor
