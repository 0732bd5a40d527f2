"""How often a spec is held against workers: it must not grow with how many wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from jobcluster_controller import scheduler
from jobcluster_controller.domain.job import Limits
from jobcluster_controller.domain.states import State

from tests.unit.controller.house import Core
from tests.unit.controller.makers import spec

SMALL, BIG = Limits(memory=64 << 20), 128 << 20


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time the scheduler is asked."""
    asked: list[str] = []
    choose = scheduler.choose

    def noted(wanted: Any, candidates: Any) -> Any:
        asked.append(str(wanted.limits))
        return choose(wanted, candidates)

    monkeypatch.setattr(scheduler, "choose", noted)
    return asked


async def test_many_who_ask_for_what_is_full_cost_a_newcomer_and_each_placement_nothing(
    looks: list[str],
) -> None:
    core = await Core().load()
    await core.add_worker("small", tasks=1, most=SMALL)
    await core.add_worker("big", tasks=1, most=Limits(memory=512 << 20))
    await core.start(spec(limits=Limits(memory=BIG)))
    for number in range(20):  # each in a line of its own, with room for none of them though "small" is idle
        looks.clear()
        assert (await core.start(spec(limits=Limits(memory=BIG + number)))).state is State.QUEUED
        await asyncio.sleep(0)
        assert len(looks) <= 1
    await core.start(spec(worker_id="small", limits=SMALL))
    waiting = [await core.start(spec(limits=SMALL)) for _ in range(5)]
    looks.clear()
    await core.add_worker("new", tasks=5, most=SMALL)
    assert {(await core.jobs.get(job.job_id)).tasks[0].worker_id for job in waiting} == {"new"}
    assert len(looks) == 20 + 5
