import pytest
from jobcluster_common.identity import CONTROLLER, Identity, Kind

WORKER = Identity(Kind.WORKER, "0b5a0b0e-4f0c-4a55-9d3e-7a3f1d3a2b10")


def test_each_kind_has_one_uri_and_one_dns_name() -> None:
    assert (CONTROLLER.uri, CONTROLLER.dns_name) == (
        "spiffe://jobcluster/controller",
        "controller.jobcluster",
    )
    assert WORKER.uri == f"spiffe://jobcluster/worker/{WORKER.name}"
    assert WORKER.dns_name == f"{WORKER.name}.worker.jobcluster"
    assert Identity(Kind.USER, "ana").uri == "spiffe://jobcluster/user/ana"


@pytest.mark.parametrize("identity", [CONTROLLER, WORKER, Identity(Kind.USER, "ana")])
def test_a_uri_parses_back_to_its_identity(identity: Identity) -> None:
    assert Identity.parse(identity.uri) == identity


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "controller",
        "spiffe://jobcluster",
        "spiffe://jobcluster/",
        "spiffe://jobcluster/controller/",
        "spiffe://jobcluster/controller/x",
        "spiffe://jobcluster/worker",
        "spiffe://jobcluster/worker/",
        "spiffe://jobcluster/worker/a/b",
        "spiffe://jobcluster/worker/A",
        "spiffe://jobcluster/worker/a.b",
        "spiffe://jobcluster/worker/a\n",
        "spiffe://jobcluster/Worker/a",
        "spiffe://jobcluster/admin/a",
        "spiffe://other/worker/a",
        "SPIFFE://jobcluster/controller",
        " spiffe://jobcluster/controller",
        f"spiffe://jobcluster/worker/{'a' * 64}",
    ],
)
def test_anything_but_the_exact_spelling_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        Identity.parse(uri)
