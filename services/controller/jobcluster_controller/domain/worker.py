"""Worker: a machine's worth of jobs, as the controller knows it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from .job import Enforcement
from .states import WorkerState


@dataclass(frozen=True, slots=True)
class Capacity:
    cpu: float = 0.0
    memory: int = 0
    tasks: int = 0


@dataclass(frozen=True, slots=True)
class Worker:
    """``epoch`` grows when the controller declares the worker lost; ``incarnation`` is random per launcher start."""

    worker_id: str
    address: str
    state: WorkerState
    incarnation: str
    epoch: int
    registered_at: datetime
    last_seen_at: datetime
    version: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    capacity: Capacity = Capacity()
    enforced: dict[str, Enforcement] = field(default_factory=dict)

    def evolve(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)
