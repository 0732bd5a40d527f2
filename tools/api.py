"""The cluster's HTTP API with nothing but the standard library, as any program outside may use it."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class ApiError(Exception):
    """An answer that is not 2xx. ``str()`` has the status and the problem's detail."""


class Api:
    """One controller. Each call is a connection of its own."""

    def __init__(self, host: str, port: int, ca_file: Path, token: str) -> None:
        self._host = host
        self._port = port
        self._context = ssl.create_default_context(cafile=str(ca_file))
        self._token = token

    def call(self, method: str, path: str, body: object = None, seconds: float = 60) -> bytes:
        """The body of a 2xx answer.

        :raises ApiError: on any other answer.
        :raises OSError: if there is no answer within ``seconds``.
        """
        connection = self._connection(seconds)
        try:
            headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        if not 200 <= answer.status < 300:
            raise ApiError(f"{method} {path}: {answer.status} {content.decode(errors='replace')}")
        return content

    @contextlib.contextmanager
    def stream(self, path: str, seconds: float) -> Iterator[http.client.HTTPResponse]:
        """A 2xx answer whose body is read as it comes; ``seconds`` is how long it may be silent.

        :raises ApiError: on any other answer.
        """
        connection = self._connection(seconds)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self._token}"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise ApiError(f"GET {path}: {answer.status} {answer.read().decode(errors='replace')}")
            yield answer
        finally:
            connection.close()

    def _connection(self, seconds: float) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self._host, self._port, timeout=seconds, context=self._context)

    def get(self, path: str, seconds: float = 60) -> Any:
        return json.loads(self.call("GET", path, seconds=seconds))

    def post(self, path: str, body: object = None, seconds: float = 60) -> Any:
        return json.loads(self.call("POST", path, body, seconds))
