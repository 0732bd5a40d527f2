"""Fixtures of the server's tests: a worker's home, and the server's rooms on its sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.unit.worker.server.rooms import Home, Rooms


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    home.stop()


@pytest.fixture
async def rooms(home: Home) -> AsyncIterator[Rooms]:
    home.start()
    rooms = Rooms(home)
    await rooms.open()
    yield rooms
    await rooms.close()
