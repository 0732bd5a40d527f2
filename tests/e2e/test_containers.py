"""What the containers may do, what they show, and what a job in them is."""

from __future__ import annotations

import json

import pytest

from tests.e2e.api import Api, wait_until
from tests.e2e.stack import Stack, docker, inspect


@pytest.fixture(scope="module")
def config(stack: Stack) -> dict[str, dict[str, object]]:
    services: dict[str, dict[str, object]] = json.loads(stack.run("config", "--format", "json"))["services"]
    return services


def test_only_the_controller_is_published_and_only_on_loopback(stack: Stack, api: Api) -> None:
    (controller,) = stack.containers("controller")
    published = [p for ports in inspect(controller)["NetworkSettings"]["Ports"].values() for p in ports or []]
    assert {(p["HostIp"], p["HostPort"]) for p in published} == {("127.0.0.1", str(stack.port))}
    for container in stack.containers("worker", "running"):
        assert not any(inspect(container)["NetworkSettings"]["Ports"].values())
        assert set(inspect(container)["NetworkSettings"]["Networks"]) == {f"{stack.project}_cluster"}
    assert json.loads(docker("network", "inspect", f"{stack.project}_cluster"))[0]["Internal"] is True


def test_no_service_is_tied_to_one_container(config: dict[str, dict[str, object]]) -> None:
    for service in config.values():
        assert not {"container_name", "hostname"} & service.keys()
        assert "logging" in service
    assert "ports" not in config["worker"]
    assert config["worker"]["cgroup"] == "private"
    assert "init" not in config["worker"]


def test_the_controller_has_no_rights(stack: Stack, api: Api) -> None:
    (container,) = stack.containers("controller")
    status = docker("exec", container, "cat", "/proc/1/status")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[capabilities], 16) == 0, capabilities
    assert fields["NoNewPrivs"].strip() == "1"
    assert set(fields["Uid"].split()) == {"10001"}


WRITABLE = """
import os
for top, names, _ in os.walk("/"):
    names[:] = [n for n in names if not os.path.islink(os.path.join(top, n))]
    if top in ("/proc", "/sys", "/dev"):
        names[:] = []
    elif os.access(top, os.W_OK):
        print(top)
        names[:] = []
"""


def test_the_controller_can_write_to_its_volumes_only(stack: Stack, api: Api) -> None:
    (container,) = stack.containers("controller")
    writable = docker("exec", container, "python", "-c", WRITABLE).split()
    assert set(writable) <= {"/tmp", "/var/lib/jobcluster"}, writable
    assert "/var/lib/jobcluster" in writable


def test_no_secret_is_in_inspect_or_logs(stack: Stack, api: Api, three: set[str]) -> None:
    api.run(command="true")
    secrets = [
        stack.file(f"{name}.token").decode().strip() for name in ("admin", "operator", "viewer", "join")
    ]
    secrets += [stack.file(f"{name}.key").decode().splitlines()[1] for name in ("ca", "controller")]
    assert all(len(secret) > 20 for secret in secrets)
    containers = [c for service in ("certs", "controller", "worker") for c in stack.containers(service)]
    shown = stack.run("logs", "--no-color") + "".join(docker("inspect", c) for c in containers)
    assert [secret[:4] for secret in secrets if secret in shown] == []


def test_keys_are_for_their_owner_alone(stack: Stack, api: Api) -> None:
    (controller,) = stack.containers("controller")
    listed = docker("exec", controller, "stat", "-c", "%a %u %n", "/var/lib/jobcluster-certs")
    assert listed.split()[:2] == ["700", "10001"]
    for line in docker(
        "exec",
        controller,
        "sh",
        "-c",
        "stat -c '%a %u %n' /var/lib/jobcluster-certs/*.key /var/lib/jobcluster-certs/*.token",
    ).splitlines():
        assert line.startswith("600 10001 "), line
    for container in stack.containers("worker", "running"):
        held = docker("exec", container, "ls", "/var/lib/jobcluster-join").split()
        assert sorted(held) == ["ca.crt", "join.token"]


PROBE = """
import json, os, pathlib
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
readable = []
for path in ("/var/lib/jobcluster/state", "/var/lib/jobcluster/data", "/var/lib/jobcluster-join", "/proc/1/environ",
             "/opt/jobcluster/etc/worker.toml", "/etc/shadow"):
    try:
        if os.listdir(path) if os.path.isdir(path) else open(path, "rb").read():
            readable.append(path)
    except OSError:
        pass
print(json.dumps({"uid": os.getuid(), "groups": os.getgroups(), "caps": status["CapEff"].strip(), "bounding":
    status["CapBnd"].strip(), "no_new_privs": status["NoNewPrivs"].strip(), "seccomp": status["Seccomp"].strip(),
    "readable": readable, "environment": sorted(k for k in os.environ if not k.startswith("JOBCLUSTER_"))}))
"""


def test_a_job_is_nobody_in_particular(stack: Stack, api: Api, three: set[str]) -> None:
    job = api.run(command="python3", args=["-c", PROBE])
    seen = json.loads(api.output(job["job_id"]))
    assert seen["uid"] >= 100000
    assert seen["groups"] == []
    assert (int(seen["caps"], 16), int(seen["bounding"], 16)) == (0, 0)
    assert (seen["no_new_privs"], seen["seccomp"]) == ("1", "2")
    assert seen["readable"] == []


def test_two_jobs_have_two_users(api: Api, three: set[str]) -> None:
    worker_id = min(three)
    jobs = [api.start(worker_id, command=["sh", "-c", "id -u; sleep 2"]) for _ in range(2)]
    ended = [api.ended(j["job_id"]) for j in jobs]
    users = {api.output(j["job_id"]) for j in ended}
    assert len(users) == 2


TREE = """
import json, os, pathlib
found = []
for p in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        words = (p / "cmdline").read_bytes().split(b"\\0")
        fields = (p / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        continue
    if int(p.name) != os.getpid():
        found.append([int(p.name), int(fields[1]), b" ".join(words).decode(), os.stat(p).st_uid])
print(json.dumps(found))
"""


def test_the_launcher_is_pid_1_and_the_server_is_in_no_jobs_ancestry(
    stack: Stack, api: Api, three: set[str]
) -> None:
    worker_id = min(three)
    container = stack.container_of(worker_id, api)
    job = api.start(worker_id, command=["sleep", "4242"])
    api.running(job["job_id"])
    tree = json.loads(docker("exec", container, "python", "-c", TREE))
    parents = {pid: parent for pid, parent, _, _ in tree}
    lines = {pid: line for pid, _, line, _ in tree}
    (task,) = [pid for pid, line in lines.items() if line.startswith("sleep 4242")]
    (server,) = [pid for pid, line in lines.items() if "jobcluster_worker.server" in line]
    assert parents[server] == 1
    supervisor = parents[task]
    assert supervisor not in (1, server)
    assert parents[supervisor] == 1
    assert {uid for pid, _, _, uid in tree if pid == task}.isdisjoint({0})
    api.stop(job["job_id"], grace_seconds=1)
    api.ended(job["job_id"])
    wait_until(
        lambda: docker("exec", container, "python", "-c", TREE),
        lambda t: "sleep 4242" not in t,
        10,
        "no process left",
    )


CGROUPS = """
import json, pathlib
top = pathlib.Path("/sys/fs/cgroup")
if not (top / "cgroup.controllers").exists():
    print(json.dumps(None))
else:
    print(json.dumps({"here": pathlib.Path("/proc/1/cgroup").read_text(), "procs": (top / "cgroup.procs").read_text(),
        "control": (top / "cgroup.subtree_control").read_text().split()}))
"""


def test_own_processes_are_in_leaves_where_the_host_has_cgroup_v2(
    stack: Stack, api: Api, three: set[str]
) -> None:
    for container in stack.containers("worker", "running"):
        seen = json.loads(docker("exec", container, "python", "-c", CGROUPS))
        if seen is None:  # a host with cgroup v1: nothing is enforced there, and each worker must say so
            assert not any(e["ok"] for w in api.workers() for e in w["enforced"].values())
            continue
        assert seen["here"].strip() == "0::/init"
        assert seen["procs"].strip() in ("", "0")
        assert {"cpu", "memory", "io", "pids"} <= set(seen["control"])


def test_a_second_up_changes_nothing(stack: Stack, api: Api, three: set[str]) -> None:
    before = {
        c: inspect(c)["State"]["StartedAt"]
        for c in stack.containers("worker") + stack.containers("controller")
    }
    admin = stack.file("admin.token")
    stack.run("up", "-d", "--wait", "--scale", "worker=3")
    assert {c: inspect(c)["State"]["StartedAt"] for c in before} == before
    assert stack.file("admin.token") == admin
    assert api.ready() == three
