import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "certs" / "make_certs.py"


@pytest.fixture(scope="session")
def script() -> Path:
    return SCRIPT


@pytest.fixture(scope="session")
def make_certs() -> ModuleType:
    """certs/make_certs.py, which is a script and in no distribution."""
    spec = importlib.util.spec_from_file_location("make_certs", SCRIPT)
    if spec is None or spec.loader is None:
        raise ImportError(str(SCRIPT))
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_certs"] = module
    spec.loader.exec_module(module)
    return module
