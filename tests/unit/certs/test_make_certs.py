import hashlib
import ipaddress
import shutil
import ssl
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from jobcluster_common.certificates import identity_of, load, make_ca, make_leaf, write_private
from jobcluster_common.identity import CONTROLLER, Identity, Kind

PAIRS = ("ca", "controller", "http", "user-admin")
ROLES = ("admin", "operator", "viewer", "join")


@pytest.fixture
def out(tmp_path: Path, make_certs: ModuleType) -> Path:
    make_certs.make(tmp_path)
    return tmp_path


def content(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def certificate(out: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((out / f"{name}.crt").read_bytes())


def test_it_makes_exactly_the_pairs_and_tokens(out: Path) -> None:
    pairs = {f"{name}.{kind}" for name in PAIRS for kind in ("crt", "key")}
    tokens = {f"{role}.token{suffix}" for role in ROLES for suffix in ("", ".sha256")}
    assert set(content(out)) == pairs | tokens


def test_keys_and_tokens_are_for_their_owner_only(out: Path) -> None:
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in out.iterdir()}
    assert {n: m for n, m in modes.items() if not n.endswith(".crt")} == {
        n: 0o600 for n in modes if not n.endswith(".crt")
    }


def test_a_second_run_changes_nothing(out: Path, make_certs: ModuleType) -> None:
    before = content(out)
    assert make_certs.make(out) == []
    assert content(out) == before


def test_identities_are_the_profiles(out: Path) -> None:
    assert identity_of((out / "controller.crt").read_bytes()) == CONTROLLER
    assert identity_of((out / "user-admin.crt").read_bytes()) == Identity(Kind.USER, "admin")


def test_the_https_leaf_has_the_names_clients_use_and_no_identity(out: Path, make_certs: ModuleType) -> None:
    ca = (out / "ca.crt").read_bytes()
    make_certs.make(out, ["jobs.example.org", "10.1.2.3"])
    assert (out / "ca.crt").read_bytes() == ca
    assert make_certs.make(out) == [], "names given once are kept"
    san = certificate(out, "http").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert san.get_values_for_type(x509.DNSName) == ["localhost", "controller", "jobs.example.org"]
    assert ipaddress.ip_address("127.0.0.1") in san.get_values_for_type(x509.IPAddress)
    assert ipaddress.ip_address("10.1.2.3") in san.get_values_for_type(x509.IPAddress)
    assert san.get_values_for_type(x509.UniformResourceIdentifier) == []


def test_a_users_leaf_cannot_serve_and_the_https_leaf_cannot_be_a_client(out: Path) -> None:
    def usages(name: str) -> list[x509.ObjectIdentifier]:
        return list(certificate(out, name).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)

    assert usages("user-admin") == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert usages("http") == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert usages("controller") == [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


@pytest.mark.parametrize("name", PAIRS)
def test_each_certificate_has_key_usage_and_both_key_identifiers(out: Path, name: str) -> None:
    extensions = certificate(out, name).extensions
    assert extensions.get_extension_for_class(x509.KeyUsage).critical
    assert extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "controller"])
def test_https_clients_as_strict_as_those_of_python_3_13_accept_it(out: Path, host: str) -> None:
    client = ssl.create_default_context(cafile=out / "ca.crt")
    client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(out / "http.crt", out / "http.key")
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(a, b, server_hostname=host)
    two = server.wrap_bio(b, a, server_side=True)
    for step in (one.do_handshake, two.do_handshake):
        with pytest.raises(ssl.SSLWantReadError):
            step()
    one.do_handshake()
    two.do_handshake()
    assert one.version() == "TLSv1.3"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program here")
@pytest.mark.parametrize("name", ["controller", "http", "user-admin"])
def test_openssl_verifies_each_leaf_strictly(out: Path, name: str) -> None:
    purpose = "sslclient" if name == "user-admin" else "sslserver"
    argv: list[str | Path] = [
        "openssl",
        "verify",
        "-x509_strict",
        "-purpose",
        purpose,
        "-CAfile",
        out / "ca.crt",
        out / f"{name}.crt",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_tokens_have_256_bits_and_the_controllers_file_only_their_hash(out: Path) -> None:
    tokens = {role: (out / f"{role}.token").read_text().strip() for role in ROLES}
    assert len(set(tokens.values())) == 4
    for role, token in tokens.items():
        assert len(token) >= 43  # 32 bytes in base64
        hashed = (out / f"{role}.token.sha256").read_text().strip()
        assert hashed == f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"


def test_a_token_taken_away_is_not_replaced_and_a_changed_one_is_hashed_anew(
    out: Path, make_certs: ModuleType
) -> None:
    (out / "admin.token").unlink()
    (out / "viewer.token").write_text("a token of one's own, long enough to be good\n")
    assert make_certs.make(out) == ["viewer.token.sha256"]


@pytest.mark.parametrize("lost", ["controller.key", "http.crt"])
def test_half_a_pair_is_made_anew(out: Path, make_certs: ModuleType, lost: str) -> None:
    (out / lost).unlink()
    name = lost.partition(".")[0]
    assert make_certs.make(out) == [f"{name}.key", f"{name}.crt"]


def test_leaves_that_end_soon_or_are_of_another_ca_or_key_are_made_anew(
    out: Path, make_certs: ModuleType
) -> None:
    ca = load((out / "ca.crt").read_bytes(), (out / "ca.key").read_bytes())
    user = Identity(Kind.USER, "admin")
    foreign = make_leaf(make_ca(), user, server=False)
    for wrong in (make_leaf(ca, user, days=29, server=False), foreign, make_leaf(ca, CONTROLLER)):
        (out / "user-admin.crt").write_bytes(wrong.crt_pem)
        write_private(out / "user-admin.key", wrong.key_pem)
        assert make_certs.make(out) == ["user-admin.key", "user-admin.crt"]
    write_private(out / "user-admin.key", foreign.key_pem)
    assert make_certs.make(out) == ["user-admin.key", "user-admin.crt"]


def test_a_ca_without_its_key_is_never_replaced(out: Path, script: Path) -> None:
    (out / "ca.key").unlink()
    before = content(out)
    done = subprocess.run([sys.executable, script, "--out", out], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("certs: ") and done.stderr.count("\n") == 1
    assert content(out) == before


def test_the_script_says_what_it_made(tmp_path: Path, script: Path) -> None:
    argv: list[str | Path] = [
        sys.executable,
        script,
        "--out",
        tmp_path / "new" / "certs",
        "--names",
        "a.example,b.example",
    ]
    first = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    second = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert "made ca.key ca.crt controller.key" in first.stdout
    assert "all there" in second.stdout


def test_two_runs_at_once_make_one_ca(tmp_path: Path, make_certs: ModuleType) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: make_certs.make(tmp_path), range(4)))
    assert sorted(len(m) for m in made) == [0, 0, 0, 16]


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path, script: Path) -> None:
    (tmp_path / "file").touch()
    argv: list[str | Path] = [sys.executable, script, "--out", tmp_path / "file" / "out"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("name", ["bad name", "a..b", "é.example", "https://a.example", "a" * 64, "-a"])
def test_a_name_that_is_none_is_one_line_and_makes_nothing(tmp_path: Path, script: Path, name: str) -> None:
    out = tmp_path / "out"
    names = f"good.example,{name.replace(' ', '!')}"
    argv: list[str | Path] = [sys.executable, script, "--out", out, "--names", names]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "not a host name or address" in done.stderr and not out.exists()
