"""The routes about the service itself: health, metrics, its own description."""

from __future__ import annotations

from jobcluster_common.errors import Unavailable
from starlette.responses import Response
from starlette.types import ASGIApp

from ..metrics import MEDIA_TYPE
from .call import Call
from .jobs import answer


async def healthz(call: Call) -> ASGIApp:
    """Whether the process answers"""
    return answer({"status": "ok"})


async def readyz(call: Call) -> ASGIApp:
    """Whether it takes jobs"""
    if not call.doors.ready():
        raise Unavailable("the controller is starting or stopping")
    await call.doors.check_store()
    return answer({"status": "ready"})


async def metrics(call: Call) -> ASGIApp:
    """Metrics for Prometheus"""
    return Response(call.doors.metrics.text(), media_type=MEDIA_TYPE)


async def openapi(call: Call) -> ASGIApp:
    """This description"""
    return answer(call.doors.describe())
