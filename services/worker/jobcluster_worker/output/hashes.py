"""The sha256 of a task's streams, kept up while they grow. Stdlib only."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from jobcluster_worker.output.index import STDERR

if TYPE_CHECKING:
    from hashlib import _Hash


class StreamHashes:
    """sha256 of the merged stream and of each part; one hash as long as only one part has data."""

    def __init__(self) -> None:
        self._merged = hashlib.sha256()
        self._only: int | None = None
        self._parts: list[_Hash] | None = None

    def update(self, kind: int, data: memoryview) -> None:
        if self._parts is None and self._only != kind:
            if self._only is None:
                self._only = kind
            else:
                other = self._merged.copy()
                self._parts = [other, hashlib.sha256()] if kind == STDERR else [hashlib.sha256(), other]
        self._merged.update(data)
        if self._parts is not None:
            self._parts[kind].update(data)

    def merged(self) -> str:
        return self._merged.hexdigest()

    def of(self, kind: int) -> str:
        if self._parts is not None:
            return self._parts[kind].hexdigest()
        return self._merged.hexdigest() if self._only == kind else hashlib.sha256().hexdigest()
