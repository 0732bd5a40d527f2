"""What a task's output is on disk, read back by the simplest means."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st
from jobcluster_worker.output.index import STDERR, STDOUT, IndexReader

RUNS = st.lists(
    st.tuples(
        st.sampled_from([STDOUT, STDERR]), st.binary(max_size=40), st.sampled_from([0.0, 0.001, 0.003])
    ),
    max_size=40,
)


@contextmanager
def index_of(directory: Path) -> Iterator[IndexReader]:
    reader = IndexReader(os.open(directory / "index", os.O_RDONLY | os.O_CLOEXEC))
    yield reader
    reader.close()


def parts(directory: Path) -> tuple[bytes, bytes, bytes]:
    """(merged, stdout, stderr) as data file and index tell them."""
    data, out, err, position = (directory / "output").read_bytes(), b"", b"", 0
    with index_of(directory) as reader:
        for record in reader.records(0, 1 << 30):
            run = data[position : record.merged_end]
            out, err = (out + run, err) if record.kind == STDOUT else (out, err + run)
            position = record.merged_end
            assert (len(out), len(err)) == (record.stdout_end, record.stderr_end)
    return data[:position], out, err


def stream(data: bytes) -> dict[str, object]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
