"""schemathesis over the OpenAPI of a running controller: every answer is one that the document tells of.

OPENAPI_EXAMPLES sets how many requests each operation gets. There is no worker, so that nothing of what is made up here
is ever executed: the jobs stay queued.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import positive_data_acceptance, unsupported_method

from tests.integration.cluster import Cluster, eventually

EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "30"))
LIVE = "/v1/events"
"""Never ends; tested elsewhere."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A controller without workers, and one job that waits."""
    cluster = Cluster(tmp_path_factory.mktemp("openapi"))
    try:
        cluster.controller.start()
        eventually(lambda: answers(cluster), what="the controller's answer")
        yield cluster
    finally:
        cluster.close()


def answers(cluster: Cluster) -> bool:
    assert cluster.controller.running(), cluster.logs()
    try:
        with cluster.client(role=None) as client:
            return client.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def openapi(alone: Cluster) -> Any:
    with alone.client() as client:
        return schemathesis.openapi.from_dict(client.get("/v1/openapi.json").json())


@pytest.fixture(scope="module")
def known(alone: Cluster) -> str:
    """A job that exists."""
    return str(alone.post({"command": "true", "name": "known"})["job_id"])


schema = schemathesis.pytest.from_fixture("openapi").exclude(path=LIVE)


Case = schemathesis.Case[Any]


def send(case: Case, alone: Cluster) -> None:
    query = case.query or {}
    # Nothing here ever ends: what waits for an end would only wait.
    if query.get("follow") in (True, "true"):
        query["follow"] = False
    if isinstance(query.get("wait"), int | float) and query["wait"] > 0:
        query["wait"] = 0
    case.call_and_validate(
        base_url=f"https://127.0.0.1:{alone.https}",
        headers={"Authorization": f"Bearer {alone.token('admin')}"},
        verify=str(alone.certs / "ca.crt"),
        timeout=30,
        # A command with an unbalanced quote fits any schema and is refused all the same.
        excluded_checks=[positive_data_acceptance, unsupported_method],
    )


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@pytest.mark.timeout(300)
def test_every_answer_is_told_of(case: Case, alone: Cluster, known: str) -> None:
    send(case, alone)


@schema.include(path_regex="job_id").parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@pytest.mark.timeout(300)
def test_every_answer_about_a_known_job_is_told_of(case: Case, alone: Cluster, known: str) -> None:
    case.path_parameters = {**(case.path_parameters or {}), "job_id": known}
    send(case, alone)
