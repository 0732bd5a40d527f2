import shlex
import socket
import stat
import subprocess
import tomllib
from pathlib import Path

from tools import host


def test_blocks_read_back_as_they_were() -> None:
    blocks = {
        "a": {"text": 'quote " and \\ and ü', "path": Path("/x y"), "yes": True, "n": 3, "l": ["b"]},
        "c": {},
    }
    read = tomllib.loads(host.toml(blocks))
    assert read == {"a": {**blocks["a"], "path": "/x y"}, "c": {}}


def test_env_is_for_its_owner_and_a_shell_can_source_it(
    tmp_path: Path,
) -> None:
    build = tmp_path / "it's a path"
    build.mkdir()
    (build / "token").write_text("a$b`c\n")
    env = build / "env"
    host.write_env(env, "https://127.0.0.1:8443", build / "ca.crt", build / "token", build / "client.toml")
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    shell = f'. {shlex.quote(str(env))}; printf \'%s\\n\' "$JOBCLUSTER_TOKEN" "$JOBCLUSTER_CA_FILE"'
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines() == ["a$b`c", f"{build}/ca.crt"]
    client = tomllib.loads((build / "client.toml").read_text())["client"]
    assert client == {
        "url": "https://127.0.0.1:8443",
        "ca_file": f"{build}/ca.crt",
        "token_file": f"{build}/token",
    }


def test_a_secret_is_replaced_whatever_lies_there(tmp_path: Path) -> None:
    for text in ("one", "two"):
        host.write_secret(tmp_path / "secret", text)
        assert (tmp_path / "secret").read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["secret"]


def test_a_port_is_taken_while_somebody_listens() -> None:
    with socket.create_server((host.HOST, 0)) as listener:
        port = listener.getsockname()[1]
        assert not host.port_is_free(port)
    assert host.port_is_free(port)


def test_a_free_port_is_none_that_the_kernel_gives_to_connections() -> None:
    with socket.create_server((host.HOST, 0)) as given:
        assert host.free_port() < given.getsockname()[1]
    port = host.free_port()
    with socket.create_server((host.HOST, port)):
        assert not host.port_is_free(port)
