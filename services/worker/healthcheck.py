"""Exit 0 when the worker's gRPC port takes connections; standard library only."""

from __future__ import annotations

import socket
import sys


def main() -> int:
    try:
        socket.create_connection(("127.0.0.1", 7444), timeout=4).close()
    except OSError as error:
        sys.stderr.write(f"port 7444: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
