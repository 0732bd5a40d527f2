from collections.abc import Callable
from pathlib import Path

import pytest
from jobcluster_common.certificates import Issued, make_ca, make_leaf, write_private
from jobcluster_common.identity import Identity
from jobcluster_common.tls import TlsFiles


@pytest.fixture(scope="session")
def ca() -> Issued:
    return make_ca()


@pytest.fixture
def write_files(tmp_path: Path, ca: Issued) -> Callable[..., TlsFiles]:
    def write(
        name: str, identity: Identity | None, trusted: Issued = ca, signer: Issued = ca, **leaf: object
    ) -> TlsFiles:
        issued = make_leaf(signer, identity, **leaf)  # type: ignore[arg-type]
        files = TlsFiles(*(tmp_path / f"{name}.{suffix}" for suffix in ("crt", "key", "ca")))
        write_private(files.crt_file, issued.crt_pem)
        write_private(files.key_file, issued.key_pem)
        write_private(files.ca_file, trusted.crt_pem)
        return files

    return write
