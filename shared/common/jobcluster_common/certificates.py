"""X.509 of the cluster: an EC P-256 CA; leaves with one URI (the identity) and one DNS name (TLS checks it)."""

from __future__ import annotations

import ipaddress
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .identity import Identity

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")

# Back-dated, so that a peer whose clock is a little behind does not call a fresh certificate "not yet valid".
BACKDATED = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def crt_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return key_pem(self.key)


def make_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8, not encrypted: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load(crt_pem: bytes, private_pem: bytes) -> Issued:
    """Reads back what was made here.

    :raises ValueError: if either is not PEM, or the key is of another kind.
    """
    key = serialization.load_pem_private_key(private_pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an EC private key")
    return Issued(x509.load_pem_x509_certificate(crt_pem), key)


def make_ca(name: str = "jobcluster CA", days: float = 3650) -> Issued:
    """A self-signed CA, which signs leaves only."""
    key = make_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, subject, key.public_key(), timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return Issued(builder.sign(key, hashes.SHA256()), key)


def make_leaf(
    ca: Issued,
    identity: Identity | None,
    dns: Sequence[str] = (),
    ips: Sequence[str] = (),
    days: float = 825,
    server: bool = True,
    client: bool = True,
) -> Issued:
    """A leaf with a key of its own. Without an identity (the HTTP server's) it has names only: no peer accepts it.

    :raises ValueError: if there is neither an identity nor a name, or an address is none.
    """
    key = make_key()
    names: list[x509.GeneralName] = [x509.DNSName(n) for n in dns]
    names += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
    return Issued(_sign(ca, key.public_key(), identity, names, timedelta(days=days), server, client), key)


def make_csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request in PEM for a certificate over ``key``. It names nobody: the signer decides who that is."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def split_names(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Host names and addresses, each once, in their order.

    :raises ValueError: if one is neither.
    """
    hosts: list[str] = []
    addresses: list[str] = []
    for name in dict.fromkeys(names):
        try:
            ipaddress.ip_address(name)
            addresses.append(name)
        except ValueError:
            if len(name) > 253 or not _HOST.fullmatch(name):
                raise ValueError(f"not a host name or address: {name!r}; give each by itself") from None
            hosts.append(name)
    return hosts, addresses


def sign_csr(csr_pem: bytes, ca_crt: bytes, ca_key: bytes, identity: Identity, hours: float) -> bytes:
    """Signs the request's key for ``identity``; all else in the request is ignored. Returns PEM.

    :raises ValueError: if the request is not PEM, not signed by its own key, or the key is not EC P-256.
    """
    try:
        request = x509.load_pem_x509_csr(csr_pem)
    except ValueError:
        raise ValueError("not a certificate signing request in PEM") from None
    key = request.public_key()
    # RSA leaves would bring TLS 1.2 suites back: see tls.py.
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the key of the request must be EC P-256")
    if not request.is_signature_valid:
        raise ValueError("the request is not signed by its own key")
    leaf = _sign(load(ca_crt, ca_key), key, identity, [], timedelta(hours=hours), True, True)
    return leaf.public_bytes(serialization.Encoding.PEM)


def identity_of(cert_pem: bytes) -> Identity:
    """The identity in a certificate.

    :raises ValueError: if it is not a certificate, or has not exactly one URI, or one that is no identity.
    """
    certificate = x509.load_pem_x509_certificate(cert_pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise ValueError("the certificate has no subject alternative name") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise ValueError(f"the certificate has {len(uris)} URIs, not one")
    return Identity.parse(uris[0])


def expires_at(cert_pem: bytes) -> datetime:
    """When the certificate ends, in UTC.

    :raises ValueError: if it is not a certificate.
    """
    return x509.load_pem_x509_certificate(cert_pem).not_valid_after_utc


def write_private(path: Path, content: bytes) -> None:
    """Writes a file of mode 0600 in one step: whoever reads it sees the old content or the new.

    :raises OSError: if it cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # made with mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _sign(
    ca: Issued,
    key: ec.EllipticCurvePublicKey,
    identity: Identity | None,
    names: Sequence[x509.GeneralName],
    life: timedelta,
    server: bool,
    client: bool,
) -> x509.Certificate:
    general: list[x509.GeneralName] = []
    if identity is not None:
        general += [x509.UniformResourceIdentifier(identity.uri), x509.DNSName(identity.dns_name)]
    general += names
    if not general:
        raise ValueError("a certificate needs an identity or a name")
    usages = [ExtendedKeyUsageOID.SERVER_AUTH] * server + [ExtendedKeyUsageOID.CLIENT_AUTH] * client
    builder = (
        # An empty subject and a critical SAN (RFC 5280, 4.2.1.6): nothing can match on a common name.
        _builder(x509.Name([]), ca.certificate.subject, key, life)
        .add_extension(x509.SubjectAlternativeName(general), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False
        )
    )
    return builder.sign(ca.key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, life: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
