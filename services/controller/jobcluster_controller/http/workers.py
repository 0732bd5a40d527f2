"""The routes of workers: list, get, enrol."""

from __future__ import annotations

from jobcluster_common.errors import Conflict
from starlette.types import ASGIApp

from ..domain.states import WorkerState
from ..schemas.parse import read_model
from ..schemas.render import worker_document
from ..schemas.requests import AddWorkersBody, EnrollBody
from .call import Call
from .jobs import answer


async def list_workers(call: Call) -> ASGIApp:
    """Workers

    All but the gone ones; those only with ?state=gone.
    """
    registry = call.doors.registry
    state = WorkerState(call.query.state) if call.query.state else None
    workers = registry.list(state)
    return answer({"workers": [worker_document(w, registry.running(w.worker_id)) for w in workers]})


async def get_worker(call: Call) -> ASGIApp:
    """A worker"""
    worker = call.doors.registry.get(call.path("worker_id"))
    return answer(worker_document(worker, call.doors.registry.running(worker.worker_id)))


async def add_workers(call: Call) -> ASGIApp:
    """Make workers

    Needs a provisioner; there is none yet, so this is refused.
    """
    read_model(AddWorkersBody, await call.json())
    raise Conflict("this controller has no provisioner: start workers yourself, they enrol by themselves")


async def enroll(call: Call) -> ASGIApp:
    """Enrol a worker

    A certificate signing request and the join token become a certificate; the controller mints the worker's id.
    """
    body = read_model(EnrollBody, await call.json())
    enrolment = call.doors.enrolment
    worker_id, certificate = enrolment.enrol(body.csr)
    return answer({"worker_id": worker_id, "certificate": certificate, "ca": enrolment.ca_pem}, 201)
