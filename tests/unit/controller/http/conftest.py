from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from jobcluster_common.certificates import Issued, make_ca

from tests.unit.controller.http.house import House, open_house


@pytest.fixture(scope="session")
def ca() -> Issued:
    return make_ca()


@pytest.fixture
async def house(tmp_path: Path, ca: Issued) -> AsyncIterator[House]:
    async with open_house(tmp_path, ca) as opened:
        yield opened
