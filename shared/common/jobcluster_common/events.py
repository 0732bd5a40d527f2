"""The names of all events in the logs, each with its levels and its sentence. No other name is used; a test sees to it.

``python -m jobcluster_common.events`` prints them as the table in docs/logs.md.
"""

from __future__ import annotations

import sys
from typing import NamedTuple


class Event(NamedTuple):
    """``levels``: those it may have, the usual one first."""

    levels: tuple[str, ...]
    meaning: str


_DEBUG, _INFO, _WARNING, _ERROR = ("debug",), ("info",), ("warning",), ("error",)

CONTROLLER: dict[str, Event] = {
    "controller_ready": Event(_INFO, "both doors are open, at these ports"),
    "controller_stopping": Event(
        _INFO, "told to stop; streams are cut, so that readers come back with an offset"
    ),
    "controller_stopped": Event(_INFO, "the store is closed; what was acknowledged is in it"),
    "controller_was_frozen": Event(
        _WARNING, "it had no CPU for so long; no worker's silence is counted for it"
    ),
    "store_created": Event(_INFO, "there was no store at that place; a new one begins"),
    "store_opened": Event(_INFO, "the store of before is there"),
    "store_commit_failed": Event(_ERROR, "a transaction was not made durable; its callers got 503"),
    "store_read_failed": Event(_ERROR, "a read of the store failed; its caller got 503"),
    "monitor_failed": Event(_ERROR, "a look at the workers' leases failed; the next one tries again"),
    "request_served": Event(_DEBUG, "an HTTP request was answered with that status"),
    "request_failed": Event(_ERROR, "a fault of ours in a request; its caller got 500"),
    "http_refused": Event(_WARNING, "401 or 403: no token, an unknown one, or one that may not do this"),
    "stream_cut": Event(
        _WARNING, "an answer that lasts broke off and its connection was reset; its reader may resume"
    ),
    "stream_failed": Event(_ERROR, "the same, by a fault of ours"),
    "job_accepted": Event(_INFO, "a new job is durable"),
    "job_stop_requested": Event(_INFO, "a stop of it is durable"),
    "job_ended": Event(_INFO, "its end is durable: state, reason and exit code as in the API"),
    "start_refused": Event(_WARNING, "the worker did not start the task"),
    "starts_unanswered": Event(
        _INFO, "whether a batch of starts was taken is not known; the same is sent again"
    ),
    "task_lost": Event(_WARNING, "its worker was lost, or came back without it"),
    "task_fenced": Event(_WARNING, "it still lived on a worker that had been given up; it is killed"),
    "report_not_understood": Event(_ERROR, "a worker's word of a task made no sense and was passed over"),
    "worker_state_changed": Event(_INFO, "by its heartbeat: ready, draining, or back from unreachable"),
    "worker_unreachable": Event(_WARNING, "silent for so long; it gets no new jobs"),
    "worker_lost": Event(
        _WARNING, "silent past its lease; its tasks are lost and nothing it says of them is believed"
    ),
    "worker_gone": Event(_INFO, "it has deregistered"),
    "worker_deregistration_ignored": Event(_INFO, "it was of an incarnation that is over"),
    "worker_stream_open": Event(_INFO, "the worker has told of all its tasks; starts and stops go to it"),
    "worker_stream_broken": Event(_INFO, "the link to the worker broke; it is made again"),
    "worker_stream_failed": Event(_ERROR, "the same, by a fault of ours"),
}

WORKER: dict[str, Event] = {
    "launcher_started": Event(_INFO, "the worker's first process works; a new incarnation begins"),
    "launcher_stopping": Event(_INFO, "told to stop: the server first, then tasks and supervisors"),
    "launcher_stopped": Event(_INFO, "nothing of the worker is left but this process, which ends"),
    "not_enforced": Event(_WARNING, "these limits cannot be enforced on this host, and why"),
    "run_directory_remade": Event(_WARNING, "somebody had removed the directory of the sockets"),
    "server_started": Event(_INFO, "the launcher has executed the server"),
    "server_listening": Event(_INFO, "the server serves gRPC at this port"),
    "server_ended": Event(
        ("info", "warning", "error"), "the server is gone; it is started again unless the worker stops"
    ),
    "server_hung": Event(_WARNING, "no time is left for the server; it is killed"),
    "server_fault": Event(_ERROR, "a fault of ours in the server's dealings with a supervisor"),
    "supervisor_started": Event(_INFO, "a supervisor can take tasks"),
    "supervisor_connected": Event(_INFO, "the server knows what that supervisor holds"),
    "supervisor_silent": Event(_WARNING, "it has not said yet what it holds"),
    "supervisor_unreachable": Event(_WARNING, "its socket cannot be connected to; tried again"),
    "supervisor_ended": Event(("info", "warning"), "a supervisor is gone: sent away when empty, or dead"),
    "supervisor_lost": Event(("warning", "error"), "it died with tasks, or none can be made"),
    "launcher_lost": Event(_ERROR, "the server has lost its launcher, and ends with it"),
    "peer_failed": Event(_WARNING, "the connection to launcher or supervisor broke"),
    "connection_dropped": Event(_WARNING, "launcher or supervisor gave a connection of the server up"),
    "callback_failed": Event(_ERROR, "a fault of ours in launcher or supervisor, which goes on"),
    "task_started": Event(_INFO, "its process runs"),
    "task_ended": Event(_INFO, "nothing of it runs any more; state, reason and exit code as in the API"),
    "task_fault": Event(("error", "warning"), "something about the task could not be done or measured"),
    "task_unkillable": Event(_ERROR, "killed a minute ago and it still lives"),
    "task_recovered": Event(_INFO, "the end of a task whose supervisor is gone was found out"),
    "end_not_written": Event(
        _ERROR, "the end is told, but is not in the supervisor's file, should it die now"
    ),
    "end_log_unreadable": Event(_ERROR, "the ends that a supervisor wrote before it died cannot be read"),
    "output_not_sealed": Event(_ERROR, "the end could not be written to the output's index"),
    "output_not_recovered": Event(_ERROR, "what a dead supervisor had captured cannot be read"),
    "output_not_removed": Event(_WARNING, "an expired output could not be removed; tried again"),
    "outputs_removed": Event(_INFO, "so many expired outputs are gone from the disk"),
    "retention_failed": Event(_ERROR, "a look for expired outputs failed; the next one tries again"),
    "leaf_not_removed": Event(_ERROR, "the kernel does not let go of a task's cgroup"),
    "worker_enrolled": Event(_INFO, "the controller has signed this worker's certificate"),
    "enrolment_failed": Event(_WARNING, "it has not; tried again"),
    "certificate_unusable": Event(_WARNING, "the certificate of before is of no use; the worker enrols anew"),
    "certificate_renewed": Event(
        _INFO, "a new certificate for the same worker; the server starts again with it"
    ),
    "renewal_failed": Event(_WARNING, "no new certificate yet; tried again"),
    "registration_failed": Event(_WARNING, "the controller did not take the registration; tried again"),
    "heartbeat_failed": Event(_WARNING, "the first of some heartbeats without an answer"),
    "worker_unknown_to_controller": Event(_INFO, "it registers again"),
    "worker_draining": Event(_INFO, "told to stop: no new tasks"),
    "worker_deregistered": Event(_INFO, "it is off the controller's list"),
    "deregistration_failed": Event(_WARNING, "the controller could not be told; its lease will end"),
    "worker_stopped": Event(_INFO, "the server has done what a stop asks of it"),
}

BOTH: dict[str, Event] = {
    "worker_registered": Event(_INFO, "the worker is on the controller's list"),
    "rpc_served": Event(_DEBUG, "a gRPC call was answered"),
    "rpc_refused": Event(_WARNING, "a gRPC caller is nobody, or may not call this"),
    "rpc_failed": Event(_ERROR, "a fault of ours in a gRPC call; its caller got INTERNAL"),
    "certificate_reloaded": Event(_INFO, "the server's certificate was exchanged on the disk"),
    "certificate_reload_failed": Event(_WARNING, "it cannot be read; the one of before serves on"),
    "loop_fault": Event(_ERROR, "a fault of ours that nobody waited for"),
    "process_failed": Event(_ERROR, "a fault of ours that ends the process"),
}

EVENTS: dict[str, Event] = {**CONTROLLER, **WORKER, **BOTH}


def table() -> str:
    """All of them in Markdown."""
    lines = []
    for title, events in (("Controller", CONTROLLER), ("Worker", WORKER), ("Both", BOTH)):
        lines += [f"### {title}", "", "| event | level | |", "|---|---|---|"]
        lines += [f"| `{name}` | {', '.join(e.levels)} | {e.meaning} |" for name, e in sorted(events.items())]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table())
