import os
import subprocess
import sys


def test_grpc_imported_first_is_refused_because_its_suites_would_be_set_too_late() -> None:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GRPC_")}
    code = "import grpc, jobcluster_common.tls"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "must be imported before grpc" in done.stderr
    code = "import jobcluster_common.tls, grpc"
    assert subprocess.run([sys.executable, "-c", code], env=environ, timeout=60).returncode == 0
