"""Both services may be started in one environment: a variable for one is no fault of the other."""

from __future__ import annotations

from pathlib import Path

import jobcluster_controller.settings as controller
import jobcluster_worker.settings as worker
import pytest
from jobcluster_common.settings import Block, SettingsError, load


def names(model: type[Block]) -> set[str]:
    """Every "block.key" of a service; a block whose keys are free as "block"."""
    found = set()
    for block, field in model.model_fields.items():
        inner = field.annotation
        keys = inner.model_fields if isinstance(inner, type) and issubclass(inner, Block) else None
        found |= {f"{block}.{key}" for key in keys} if keys else {block}
    return found


def beyond(others: set[str], own: set[str], elsewhere: frozenset[str]) -> set[str]:
    return {n for n in others - own if n not in elsewhere and n.partition(".")[0] not in elsewhere}


def test_each_service_knows_what_only_the_other_one_has() -> None:
    of_controller, of_worker = names(controller.ControllerSettings), names(worker.WorkerSettings)
    assert beyond(of_worker, of_controller, controller.ELSEWHERE) == set()
    assert beyond(of_controller, of_worker, worker.ELSEWHERE) == set()


class Lone(Block):
    log: Block = Block()


def test_a_variable_of_the_other_service_is_passed_over_and_an_unknown_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text("")
    environ = {"JOBCLUSTER_LIMITS__REQUIRE": "false"}
    load(Lone, file, environ, frozenset({"limits"}))
    load(Lone, file, environ, frozenset({"limits.require"}))
    for elsewhere in (frozenset[str](), frozenset({"limits.max", "other"})):
        with pytest.raises(SettingsError, match="JOBCLUSTER_LIMITS__REQUIRE"):
            load(Lone, file, environ, elsewhere)
