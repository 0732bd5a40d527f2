"""Who may call which RPC of the controller."""

from __future__ import annotations

from jobcluster_common.identity import Kind

_WORKER = frozenset({Kind.WORKER})

CONTROLLER_POLICY = {
    "RegisterWorker": _WORKER,
    "DeregisterWorker": _WORKER,
    "Heartbeat": _WORKER,
    "RenewCertificate": _WORKER,
}
