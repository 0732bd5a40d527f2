import re
import tomllib

from tools import lock

PIN = re.compile(r"^([a-z0-9-]+)==([^ ]+)", re.MULTILINE)


def pins(text: str) -> dict[str, str]:
    return dict(PIN.findall(text))


def test_our_own_distributions_are_never_resolved() -> None:
    for name in lock.DISTRIBUTIONS:
        assert not [r for r in lock.third_party(name) if r.startswith("jobcluster")]
    assert any(r.startswith("grpcio>=") for r in lock.third_party("jobcluster-worker"))


def test_the_services_have_the_versions_that_tests_run_with_and_no_index_is_named() -> None:
    development = pins(lock.DEVELOPMENT.read_text())
    for name in lock.SERVICES:
        text = (lock.DISTRIBUTIONS[name] / "requirements.lock").read_text()
        assert pins(text).items() <= development.items()
        assert "://" not in text and "index" not in text
        assert text.count("--hash=sha256:") >= len(pins(text))


def test_all_that_a_service_needs_is_in_its_lock() -> None:
    for name in lock.SERVICES:
        locked = pins((lock.DISTRIBUTIONS[name] / "requirements.lock").read_text())
        needed = {re.split(r"[^A-Za-z0-9._-]", r, maxsplit=1)[0] for r in lock.third_party(name)}
        assert {n.lower().replace("_", "-") for n in needed} <= locked.keys()


def test_every_distribution_of_the_house_is_known() -> None:
    found = {
        tomllib.loads(p.read_text())["project"]["name"]
        for folder in ("shared", "services")
        for p in (lock.ROOT / folder).glob("*/pyproject.toml")
    }
    assert found == set(lock.DISTRIBUTIONS)
