"""What `make start` and `make up` both do on the host: is a port free, write build/env. Standard library only."""

from __future__ import annotations

import json
import os
import random
import shlex
import socket
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
HOST = "127.0.0.1"


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Connections that just ended are in nobody's way; the servers bind the same way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that nothing listens on, from below those that the kernel gives to connections and to port 0.

    One of the kernel's own would be taken by any connection between this look and the server's bind.

    :raises OSError: if none of a hundred is free.
    """
    for _ in range(100):
        port = random.randrange(10_000, 32_000)
        if port_is_free(port):
            return port
    raise OSError(f"none of a hundred ports tried on {HOST} is free")


def toml(blocks: Mapping[str, Mapping[str, object]]) -> str:
    """JSON's strings, numbers, booleans and lists are TOML's too."""
    lines: list[str] = []
    for block, keys in blocks.items():
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in keys.items()}
        lines += [f"[{block}]", *(f"{key} = {json.dumps(value)}" for key, value in plain.items())]
    return "\n".join([*lines, ""])


def write_secret(path: Path, text: str) -> None:
    """Mode 0600, replaced in one step."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    os.replace(temporary, path)


def write_env(env: Path, url: str, ca_file: Path, token_file: Path, client_config: Path) -> None:
    """The file for a shell to source, and the client's settings file that it names.

    :raises OSError: if something cannot be read or written.
    """
    client = {"url": url, "ca_file": ca_file, "token_file": token_file}
    write_secret(client_config, toml({"client": client}))
    values = {
        "JOBCLUSTER_URL": url,
        "JOBCLUSTER_CA_FILE": str(ca_file),
        "JOBCLUSTER_TOKEN": token_file.read_text().strip(),
        "JOBCLUSTER_CLIENT_CONFIG": str(client_config),
    }
    write_secret(env, "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items()))
