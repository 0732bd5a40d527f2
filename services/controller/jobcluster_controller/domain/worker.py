"""Worker: a machine's worth of jobs, as the controller knows it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from .job import NO_LIMITS, Enforcement, Limits
from .states import WorkerState


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a worker has: cores, bytes, and how many tasks it runs at once; 0 = it did not say."""

    cpu: float = 0.0
    memory: int = 0
    tasks: int = 0


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What a worker was started with: of a task that asks for nothing, of any task, of all its tasks together."""

    default: Limits = NO_LIMITS
    max: Limits = NO_LIMITS
    worker: Limits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class Worker:
    """``epoch`` grows when the controller declares the worker lost; ``incarnation`` is random per launcher start.

    ``retired`` are incarnations that deregistered or were replaced: a late message of theirs makes nothing alive.
    """

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
    limits: WorkerLimits = WorkerLimits()
    enforced: dict[str, Enforcement] = field(default_factory=dict)
    retired: tuple[str, ...] = ()

    @property
    def alive(self) -> bool:
        """Whether its tasks may still run, as far as the controller has decided."""
        return self.state not in (WorkerState.LOST, WorkerState.GONE)

    def most(self, name: str) -> float | None:
        """Of one limit, how much it can give a task: what it allows, and what it has itself. None = no bound."""
        has = {"cpu": self.capacity.cpu, "memory": self.capacity.memory}.get(name) or None
        bounds = (self.limits.max.get(name), self.limits.worker.get(name), has)
        return min((bound for bound in bounds if bound is not None), default=None)

    def evolve(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)
