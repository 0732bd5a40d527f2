"""Generates the Python code of shared/proto from its .proto files, in place or (--check) elsewhere to compare."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1] / "shared" / "proto"
PACKAGE = Path("jobcluster/v1")
GENERATED = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(target: Path) -> None:
    """Runs protoc from the proto root, so that the code says ``from jobcluster.v1 import …`` with no rewriting."""
    protos = sorted(str(p.relative_to(ROOT)) for p in (ROOT / PACKAGE).glob("*.proto"))
    (target / PACKAGE).mkdir(parents=True, exist_ok=True)
    outputs = ("python_out=", "grpc_python_out=", "mypy_out=quiet:", "mypy_grpc_out=quiet:")
    flags = [f"--{output}{target}" for output in outputs]
    # protoc looks for its plugins in PATH; they lie beside the interpreter, whose environment need not be active.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    status = protoc.main(["protoc", f"-I{ROOT}", *flags, *protos])
    if status:
        raise SystemExit(f"proto: protoc ended with {status}")


def generated(root: Path) -> dict[str, str]:
    return {p.name: p.read_text() for pattern in GENERATED for p in (root / PACKAGE).glob(pattern)}


def check() -> int:
    scratch = Path(tempfile.mkdtemp(prefix="jobcluster-proto-"))
    try:
        generate(scratch)
        fresh, kept = generated(scratch), generated(ROOT)
    finally:
        shutil.rmtree(scratch)
    for name in sorted(fresh.keys() | kept.keys()):
        old, new = kept.get(name, "").splitlines(), fresh.get(name, "").splitlines()
        sys.stderr.writelines(
            f"{line}\n" for line in difflib.unified_diff(old, new, name, name, lineterm="", n=1)
        )
    if fresh != kept:
        sys.stderr.write("proto: the generated code is out of date: run `make proto` and commit the result\n")
    return int(fresh != kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    if parser.parse_args().check:
        return check()
    generate(ROOT)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
