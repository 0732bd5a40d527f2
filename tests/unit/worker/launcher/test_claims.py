"""An attempt is claimed once, whatever comes later."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from jobcluster_worker.launcher import claims
from jobcluster_worker.launcher.claims import Claim, Claimed

KEY = ("job.with.dots", 3, 2)
CLAIM = Claim(KEY, "incarnation", "s1", 100_007)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    claims.prepare_directories(tmp_path / "data")
    return tmp_path / "data"


def test_a_claim_says_who_holds_the_attempt_and_makes_its_directory(data: Path) -> None:
    directory = claims.take(data, CLAIM)
    assert directory == data / "jobs" / "job.with.dots" / "3.2"
    assert directory.is_dir()
    assert claims.held(data) == [CLAIM]


def test_a_second_claim_is_refused_also_after_the_first_was_released(data: Path) -> None:
    claims.take(data, CLAIM)
    with pytest.raises(Claimed):
        claims.take(data, CLAIM)
    claims.release(data, KEY)
    claims.release(data, KEY)
    with pytest.raises(Claimed):
        claims.take(data, CLAIM)
    assert claims.held(data) == []


def test_of_many_at_once_exactly_one_has_it(data: Path) -> None:
    def try_it(number: int) -> bool:
        try:
            claims.take(data, Claim(KEY, "incarnation", f"s{number}", -1))
        except Claimed:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(try_it, range(64))) == 1


def test_other_ranks_and_attempts_are_other_claims(data: Path) -> None:
    for rank, attempt in ((0, 1), (0, 2), (1, 1)):
        claims.take(data, Claim(("job", rank, attempt), "i", "s1", -1))
    assert len(claims.held(data)) == 3


def test_a_claim_that_cannot_have_its_directory_leaves_nothing(data: Path) -> None:
    (data / "jobs" / "job.with.dots").write_text("in the way")
    with pytest.raises(OSError, match=r"job\.with\.dots"):
        claims.take(data, CLAIM)
    assert claims.held(data) == []


def test_what_is_no_claim_is_passed_over(data: Path) -> None:
    for name, target in (
        ("job.0.1", "two/parts"),
        ("nodots", "i/s1/5"),
        ("job.x.1", "i/s1/5"),
        ("..0.1", "i/s/1"),
    ):
        os.symlink(target, data / "claims" / name)
    (data / "claims" / "file.0.1").write_text("i/s1/5")
    assert claims.held(data) == []


def test_without_a_directory_nothing_is_held(tmp_path: Path) -> None:
    assert claims.held(tmp_path / "nowhere") == []
