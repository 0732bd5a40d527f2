"""A hostile task gets nothing of ours and harms nobody."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROBES = Path(__file__).with_name("probes.py").read_text()
Yard = Any  # conftest.py


NETWORK = {"an abstract socket", "the worker's port"}


@pytest.mark.parametrize("network", ["none", "host"])
def test_every_attempt_of_a_hostile_task_is_denied(yard: Yard, system_python: str, network: str) -> None:
    yard.run(f"neighbour-{network}", "/bin/sh", "-c", "echo canary")
    # The output of a neighbour, in the data directory.
    secret = Path(yard.hello["data"]) / f"neighbour-{network}.output"
    assert secret.read_text() == "canary\n"
    with socket.socket(socket.AF_UNIX) as door, socket.create_server(("127.0.0.1", 0)) as server:
        door.bind("\0jobcluster-test-door")
        door.listen()
        arguments = [str(secret), str(yard.hello["pid"]), f"{yard.hello['root']}/jobs/hostile/0.1"]
        arguments.append(str(server.getsockname()[1]))
        done = yard.run(f"hostile-{network}", system_python, "-c", PROBES, *arguments, network=network)
    said = json.loads(done["output"])
    assert len(said) >= 55
    allowed = {name for name, answer in said.items() if not answer.startswith("denied")}
    # In the host's network a port is a port; abstract sockets are kept apart where the kernel has Landlock's scopes.
    scoped = yard.hello["confinement"]["no signals or abstract sockets across"] == "yes"
    assert allowed == (
        set() if network == "none" else NETWORK - ({"an abstract socket"} if scoped else set())
    )
    assert yard.ask("hello")["pid"] == yard.hello["pid"]


def test_the_probes_do_get_something_where_nothing_is_confined(tmp_path: Path) -> None:
    """Else their denials would prove nothing. Only those that do no harm, in a mount namespace of their own."""
    secret = tmp_path / "secret"
    secret.write_text("canary")
    harmless = ("read a secret by its path", "init's command line", "unshare mount", "mount", "chroot")
    script = PROBES.replace("ATTEMPTS.items()", f"((name, ATTEMPTS[name]) for name in {harmless!r})")
    argv = ["unshare", "--mount", sys.executable, "-c", script, str(secret), "1", "/none", "1"]
    done = subprocess.run(argv, capture_output=True, check=True)
    assert [answer[:3] for answer in json.loads(done.stdout).values()] == ["got"] * len(harmless)
