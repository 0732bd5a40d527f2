"""schemathesis over the OpenAPI of a running controller: every answer is one that the document tells of.

OPENAPI_EXAMPLES sets how many requests each operation gets. There is no worker, so that nothing of what is made up here
is ever executed: the jobs stay queued.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import negative_data_rejection, positive_data_acceptance
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok

from tests.integration.cluster import Cluster, eventually

EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "20"))
Case = schemathesis.Case[Any]
APIOperation = schemathesis.APIOperation[Any, Any, Any, Any]
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
def operations(alone: Cluster) -> list[APIOperation]:
    """All that the running controller says it can do."""
    with alone.client() as client:
        schema = schemathesis.openapi.from_dict(client.get("/v1/openapi.json").json())
    found = [operation.ok() for operation in schema.get_all_operations() if isinstance(operation, Ok)]
    assert len(found) >= 10
    return [operation for operation in found if operation.path != LIVE]


@pytest.fixture(scope="module")
def known(alone: Cluster) -> str:
    """A job that exists."""
    return str(alone.post({"command": "true", "name": "known"})["job_id"])


def send(case: Case, alone: Cluster) -> None:
    query = case.query or {}
    # Nothing here ever ends: what waits for an end would only wait.
    if query.get("follow") in (True, "true"):
        query["follow"] = False
    if isinstance(query.get("wait"), int | float) and query["wait"] > 0:
        query["wait"] = 0
    excluded = [
        positive_data_acceptance
    ]  # an unbalanced quote in a command fits any schema and is refused all the same
    if any(value in ([], {}, None) for value in query.values()):
        excluded.append(negative_data_rejection)  # a wrong parameter without a value is not in the URL at all
    case.call_and_validate(
        base_url=f"https://127.0.0.1:{alone.https}",
        headers={"Authorization": f"Bearer {alone.token('admin')}"},
        verify=str(alone.certs / "ca.crt"),
        timeout=30,
        excluded_checks=excluded,
    )


def findings(operation: APIOperation, mode: GenerationMode, examine: Callable[[Case], None]) -> str:
    """What is wrong with the operation, or nothing."""

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Case) -> None:
        examine(case)

    try:
        run()
    except Unsatisfiable:
        return ""  # nothing about it can be wrong
    except (Failure, FailureGroup) as error:
        return f"{operation.label} ({mode.value}): {error}"
    return ""


def tell(found: list[str]) -> None:
    if any(found):
        pytest.fail(
            "\n\n".join(filter(None, found)), pytrace=False
        )  # whole: an assert would cut the curl lines


@pytest.mark.timeout(400)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_told_of(
    operations: list[APIOperation], alone: Cluster, mode: GenerationMode
) -> None:
    found = [findings(operation, mode, lambda case: send(case, alone)) for operation in operations]
    tell(found)


@pytest.mark.timeout(400)
def test_every_answer_about_a_known_job_is_told_of(
    operations: list[APIOperation], alone: Cluster, known: str
) -> None:
    def about_known(case: Case) -> None:
        case.path_parameters = {**(case.path_parameters or {}), "job_id": known}
        send(case, alone)

    about_jobs = [operation for operation in operations if "{job_id}" in operation.path]
    found = [findings(operation, GenerationMode.POSITIVE, about_known) for operation in about_jobs]
    assert about_jobs
    tell(found)
