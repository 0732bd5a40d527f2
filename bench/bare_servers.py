"""Servers of the baselines, each a process of its own: `python -m bench.bare_servers stream|hop DIRECTORY`.

``stream``: one grpc.aio server with mutual TLS that sends frames of 256 KiB. ``hop``: a Starlette route that asks a
grpc.aio server in a third process. Each prints its ports as a line of JSON when it serves, and ends with its stdin.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from jobcluster_common.tls import TlsFiles, server_credentials

# isort: split
import grpc.aio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FRAME = bytes(256 << 10)
BODY = b'{"job_id": "00000000-0000-4000-8000-000000000000", "state": "succeeded"}' * 8


def same(value: bytes) -> bytes:
    return value


async def frames(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
    for _ in range(int(request)):
        yield FRAME


async def one(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    return BODY


def handlers() -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        "Bare",
        {
            "Frames": grpc.unary_stream_rpc_method_handler(frames, same, same),
            "One": grpc.unary_unary_rpc_method_handler(one, same, same),
        },
    )


def say(**ports: int) -> None:
    sys.stdout.write(f"{json.dumps(ports)}\n")
    sys.stdout.flush()


async def until_stdin_ends() -> None:
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def grpc_server(files: TlsFiles | None) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handlers(),))
    if files is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", server_credentials(files))
    await server.start()
    return server, port


async def serve_grpc(files: TlsFiles | None) -> None:
    server, port = await grpc_server(files)
    say(grpc=port)
    await until_stdin_ends()
    await server.stop(0)


class Announcing(uvicorn.Server):
    """Says its port once it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        say(http=self.servers[0].sockets[0].getsockname()[1])


async def serve_hop(port_behind: int) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port_behind}") as channel:
        ask = channel.unary_unary("/Bare/One", request_serializer=same, response_deserializer=same)

        async def route(request: Request) -> Response:
            return Response(await ask(b"", timeout=10), media_type="application/json")

        app = Starlette(routes=[Route("/job", route)])
        config = uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            http="httptools",
            loop="asyncio",
            log_level="error",
            access_log=False,
        )
        server = Announcing(config)
        serving = asyncio.create_task(server.serve())
        await until_stdin_ends()
        server.should_exit = True
        await serving


def hop() -> None:
    command = [sys.executable, "-m", "bench.bare_servers", "plain", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as behind:
        if behind.stdout is None or behind.stdin is None:
            raise RuntimeError("no pipes")
        try:
            asyncio.run(serve_hop(json.loads(behind.stdout.readline())["grpc"]))
        finally:
            behind.stdin.close()


def main() -> None:
    kind, directory = sys.argv[1], Path(sys.argv[2])
    files = TlsFiles(directory / "controller.crt", directory / "controller.key", directory / "ca.crt")
    if kind == "stream":
        asyncio.run(serve_grpc(files))
    elif kind == "plain":
        asyncio.run(serve_grpc(None))
    else:
        hop()


if __name__ == "__main__":
    main()
