"""Makes the cluster's CA, the controller's and users' certificates, and the token files.

What is there and still good is kept; run it again to renew what ends soon or to add names. Keys and tokens are 0600.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import ipaddress
import os
import secrets
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from jobcluster_common.certificates import (
    Issued,
    load,
    make_ca,
    make_leaf,
    split_names,
    write_private,
)
from jobcluster_common.identity import Identity

HERE = Path(__file__).resolve().parent
RENEW_BEFORE = timedelta(days=30)
TOKEN_BYTES = 32


class CertsError(Exception):
    """Nothing can be made; ``str()`` says why and what to do."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One entry of profiles.toml."""

    name: str
    identity: Identity | None
    dns: tuple[str, ...]
    ips: tuple[str, ...]
    days: float
    server: bool
    client: bool

    @classmethod
    def of(cls, name: str, entry: dict[str, Any], more_names: Sequence[str]) -> Leaf:
        identity = Identity.parse(entry["identity"]) if "identity" in entry else None
        # Names given on the command line are how clients reach HTTPS; an identity's leaf has its own name only.
        dns, ips = split_names(more_names if identity is None else ())
        dns, ips = [*entry.get("dns", ()), *dns], [*entry.get("ips", ()), *ips]
        return cls(name, identity, tuple(dns), tuple(ips), entry["days"], entry["server"], entry["client"])

    def make(self, ca: Issued) -> Issued:
        return make_leaf(ca, self.identity, self.dns, self.ips, self.days, self.server, self.client)

    def wanted_names(self) -> set[object]:
        names: set[object] = {*self.dns, *(ipaddress.ip_address(ip) for ip in self.ips)}
        if self.identity is not None:
            names |= {self.identity.uri, self.identity.dns_name}
        return names


def ends_soon(certificate: x509.Certificate) -> bool:
    return certificate.not_valid_after_utc - RENEW_BEFORE < datetime.now(UTC)


def is_good(issued: Issued, leaf: Leaf, ca: Issued) -> bool:
    """Whether a certificate found on disk is what would be made now."""
    certificate = issued.certificate
    try:
        certificate.verify_directly_issued_by(ca.certificate)
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
        return False
    pair = certificate.public_key() == issued.key.public_key()
    names: set[object] = {name.value for name in san}
    # A later run without --names keeps the names of an earlier one; an identity is exactly one.
    named = names == leaf.wanted_names() if leaf.identity else names >= leaf.wanted_names()
    return pair and named and not ends_soon(certificate)


class Maker:
    """Writes into one directory, and remembers what it made."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.made: list[str] = []

    def run(self, profiles: dict[str, Any], names: Sequence[str]) -> None:
        ca = self.ca(profiles["ca"])
        for name, entry in profiles["leaf"].items():
            self.leaf(ca, Leaf.of(name, entry, names))
        for role in profiles["tokens"]["roles"]:
            self.token(role)

    def ca(self, entry: dict[str, Any]) -> Issued:
        found = self.read("ca")
        if found is not None and not ends_soon(found.certificate):
            return found
        if found is None and (self.out / "ca.crt").exists():
            # A new CA would cut off every worker that trusts this one: only a person may want that.
            raise CertsError(
                f"{self.out}: ca.crt is there but no usable ca.key; put the key back, or remove ca.crt too"
            )
        ca = make_ca(entry["name"], entry["days"])
        self.write_pair("ca", ca)
        return ca

    def leaf(self, ca: Issued, leaf: Leaf) -> None:
        found = self.read(leaf.name)
        if found is None or not is_good(found, leaf, ca):
            self.write_pair(leaf.name, leaf.make(ca))

    def token(self, role: str) -> None:
        clear, hashed = self.out / f"{role}.token", self.out / f"{role}.token.sha256"
        if not clear.exists():
            if hashed.exists():
                return  # the clear one was taken to where it is used
            self.write_secret(clear, secrets.token_urlsafe(TOKEN_BYTES))
        digest = f"sha256:{hashlib.sha256(clear.read_text().strip().encode()).hexdigest()}"
        if not hashed.exists() or hashed.read_text().strip() != digest:
            self.write_secret(hashed, digest)

    def read(self, name: str) -> Issued | None:
        try:
            return load((self.out / f"{name}.crt").read_bytes(), (self.out / f"{name}.key").read_bytes())
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def write_pair(self, name: str, issued: Issued) -> None:
        write_private(self.out / f"{name}.key", issued.key_pem)
        certificate = self.out / f"{name}.crt"
        write_private(certificate, issued.crt_pem)
        certificate.chmod(0o644)
        self.made += [f"{name}.key", f"{name}.crt"]

    def write_secret(self, path: Path, text: str) -> None:
        write_private(path, f"{text}\n".encode())
        self.made.append(path.name)


def make(out: Path, names: Sequence[str] = ()) -> list[str]:
    """Makes what lacks in ``out``; returns the names of the files written.

    :raises CertsError: if the CA's key is gone.
    :raises OSError: if a file cannot be read or written.
    """
    out.mkdir(parents=True, exist_ok=True)
    directory = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)  # two at once would mix two CAs
        maker = Maker(out)
        maker.run(tomllib.loads((HERE / "profiles.toml").read_text()), names)
        return maker.made
    finally:
        os.close(directory)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "out", help="directory for the files (certs/out)")
    parser.add_argument(
        "--names", default="", help="more host names and addresses of the HTTPS port, separated by commas"
    )
    arguments = parser.parse_args()
    names = arguments.names.replace(",", " ").split()
    try:
        split_names(names)
        made = make(arguments.out, names)
    except OSError as error:
        reason = f"{error.filename or arguments.out}: {error.strerror or error}"
        sys.stderr.write(f"certs: {reason}; name a directory that can be written with --out\n")
        return 1
    except (CertsError, ValueError) as error:
        sys.stderr.write(f"certs: {error}\n")
        return 1
    print(f"certs: {arguments.out}: {'made ' + ' '.join(made) if made else 'all there'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
