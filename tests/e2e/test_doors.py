"""Which role may use which route, asked of the running controller: its own OpenAPI says what routes there are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.api import Api
from tests.e2e.stack import Stack

METHODS = frozenset({"get", "post", "put", "patch", "delete"})
OPEN = frozenset({"/healthz", "/readyz"})
NOBODY = "00000000-0000-4000-8000-000000000000"
RANK = {"none": 0, "wrong": 0, "viewer": 1, "operator": 2, "admin": 3}


def needed(method: str, path: str) -> str:
    """The least role that the route is for, by the rule of the README and not by the product's own table."""
    if path in OPEN:
        return "none"
    if method == "get":
        return "operator" if path.endswith("/output") else "viewer"
    return "operator" if path.endswith(("/jobs", "/stop")) else "admin"


@pytest.fixture(scope="module")
def doors(stack: Stack, api: Api) -> Iterator[dict[str, Api]]:
    wrong = Api(api.url, stack.directory / "ca.crt", "x" * 43)
    yield {
        "none": stack.api(None),
        "wrong": wrong,
        **{role: stack.api(role) for role in ("viewer", "operator", "admin")},
    }
    wrong.close()


def routes(api: Api) -> list[tuple[str, str]]:
    paths = api.call("GET", "/v1/openapi.json", 200)["paths"]
    found = [(m, p) for p, item in paths.items() for m in item if m in METHODS]
    assert len(found) >= 10, found
    return found


@pytest.mark.parametrize("role", list(RANK))
def test_each_role_gets_through_its_own_doors_only(doors: dict[str, Api], api: Api, role: str) -> None:
    for method, path in routes(api):
        if path in ("/v1/enroll", "/v1/events"):
            continue  # enrolling takes the join token; the events never end
        url = path.replace("{worker_id}", NOBODY).replace("{job_id}", NOBODY).replace("{id}", NOBODY)
        answer = doors[role].http.request(method, url, json={} if method == "post" else None)
        if RANK[role] >= RANK[needed(method, path)] and (needed(method, path) == "none" or RANK[role]):
            assert answer.status_code not in (401, 403), (method, path, answer.text)
        else:
            expected = 403 if RANK[role] else 401
            assert answer.status_code == expected, (method, path, answer.text)
            assert answer.headers["content-type"].startswith("application/problem+json")


@pytest.mark.parametrize("role", list(RANK))
def test_enrolling_takes_the_join_token_and_nothing_else(doors: dict[str, Api], role: str) -> None:
    assert doors[role].http.post("/v1/enroll", json={"csr": "x"}).status_code in (401, 403)


def test_the_join_token_opens_nothing_but_enrolling(stack: Stack, api: Api) -> None:
    joining = stack.api("join")
    for method, path in routes(api):
        if path in OPEN | {"/v1/enroll"}:
            continue
        url = path.replace("{worker_id}", NOBODY).replace("{job_id}", NOBODY).replace("{id}", NOBODY)
        answer = joining.http.request(method, url, json={} if method == "post" else None)
        assert answer.status_code in (401, 403), (method, path, answer.text)
