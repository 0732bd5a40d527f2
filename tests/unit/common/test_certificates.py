import contextlib
import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jobcluster_common.certificates import (
    Issued,
    expires_at,
    identity_of,
    load,
    make_ca,
    make_csr,
    make_key,
    make_leaf,
    sign_csr,
    split_names,
    write_private,
)
from jobcluster_common.identity import CONTROLLER, Identity, Kind

WORKER = Identity(Kind.WORKER, "w-1")


def handshake(ca: Issued, server: Issued, client: Issued, name: str, tmp_path: Path) -> str | None:
    """A whole mutual handshake in memory, verified as strictly as Python 3.13 does by default."""

    def context(side: int, issued: Issued) -> ssl.SSLContext:
        (tmp_path / "crt").write_bytes(issued.crt_pem)
        write_private(tmp_path / "key", issued.key_pem)
        made = ssl.SSLContext(side)
        made.load_cert_chain(tmp_path / "crt", tmp_path / "key")
        made.load_verify_locations(cadata=ca.crt_pem.decode())
        made.verify_mode = ssl.CERT_REQUIRED
        made.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
        return made

    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = context(ssl.PROTOCOL_TLS_CLIENT, client).wrap_bio(a, b, server_hostname=name)
    two = context(ssl.PROTOCOL_TLS_SERVER, server).wrap_bio(b, a, server_side=True)
    for _ in range(4):
        for side in (one, two):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return two.version()


def test_leaves_pass_strict_verification_both_ways(ca: Issued, tmp_path: Path) -> None:
    server, client = make_leaf(ca, WORKER), make_leaf(ca, CONTROLLER)
    assert handshake(ca, server, client, WORKER.dns_name, tmp_path) == "TLSv1.3"


def test_another_workers_name_is_refused(ca: Issued, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(ca, make_leaf(ca, WORKER), make_leaf(ca, CONTROLLER), "w-2.worker.jobcluster", tmp_path)


def test_a_leaf_for_clients_only_cannot_serve(ca: Issued, tmp_path: Path) -> None:
    server = make_leaf(ca, WORKER, server=False)
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(ca, server, make_leaf(ca, CONTROLLER), WORKER.dns_name, tmp_path)


def test_a_leaf_has_one_uri_one_dns_name_and_all_extensions_strict_clients_want(ca: Issued) -> None:
    extensions = make_leaf(ca, WORKER).certificate.extensions
    san = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert san.critical
    assert san.value.get_values_for_type(x509.UniformResourceIdentifier) == [WORKER.uri]
    assert san.value.get_values_for_type(x509.DNSName) == [WORKER.dns_name]
    assert extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    issuer = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    own = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert issuer == own


def test_the_http_leaf_has_names_and_addresses_but_no_identity(ca: Issued) -> None:
    leaf = make_leaf(ca, None, dns=["localhost"], ips=["127.0.0.1"])
    with pytest.raises(ValueError, match="0 URIs"):
        identity_of(leaf.crt_pem)


def test_a_leaf_for_nobody_is_refused(ca: Issued) -> None:
    with pytest.raises(ValueError, match="an identity or a name"):
        make_leaf(ca, None)


def test_a_signed_request_carries_the_signers_identity_and_the_requesters_key(ca: Issued) -> None:
    key = make_key()
    pem = sign_csr(make_csr(key), ca.crt_pem, ca.key_pem, WORKER, hours=2)
    assert identity_of(pem) == WORKER
    assert x509.load_pem_x509_certificate(pem).public_key() == key.public_key()
    assert abs(expires_at(pem) - datetime.now(UTC) - timedelta(hours=2)) < timedelta(minutes=1)


def test_names_asked_for_in_a_request_are_ignored(ca: Issued) -> None:
    wish = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(CONTROLLER.uri)])
    builder = (
        x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(wish, critical=True)
    )
    csr = builder.sign(make_key(), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    assert identity_of(sign_csr(csr, ca.crt_pem, ca.key_pem, WORKER, hours=1)) == WORKER


@pytest.mark.parametrize(
    "key",
    [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())],
    ids=["rsa", "p-384"],
)
def test_a_request_with_another_kind_of_key_is_refused(
    ca: Issued, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
) -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(ValueError, match="EC P-256"):
        sign_csr(csr, ca.crt_pem, ca.key_pem, WORKER, hours=1)


@pytest.mark.parametrize(
    "csr", [b"", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
)
def test_a_broken_request_is_a_value_error(ca: Issued, csr: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        sign_csr(csr, ca.crt_pem, ca.key_pem, WORKER, hours=1)


def test_the_ca_reads_back() -> None:
    made = make_ca()
    assert load(made.crt_pem, made.key_pem).crt_pem == made.crt_pem


def test_a_private_file_is_0600_whatever_the_umask_and_replaced_in_one_step(tmp_path: Path) -> None:
    file = tmp_path / "key"
    old = os.umask(0)
    try:
        write_private(file, b"one")
    finally:
        os.umask(old)
    held = file.open("rb")
    write_private(file, b"two")
    assert (held.read(), file.read_bytes()) == (b"one", b"two")
    held.close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_what_is_no_request_is_told_so_in_our_words() -> None:
    ca = make_ca()
    for bad in (b"", b"x", ca.crt_pem):
        with pytest.raises(ValueError, match=r"^not a certificate signing request in PEM$"):
            sign_csr(bad, ca.crt_pem, ca.key_pem, Identity(Kind.WORKER, "w"), 1)


def test_names_are_told_from_addresses() -> None:
    assert split_names(["a.example", "10.0.0.1", "::1", "*.b.example", "a.example", "localhost"]) == (
        ["a.example", "*.b.example", "localhost"],
        ["10.0.0.1", "::1"],
    )
    for bad in ("", "a,b", "a b", "a.", "10.0.0.1:8443", "x" * 300):
        with pytest.raises(ValueError, match="not a host name or address"):
            split_names([bad])
