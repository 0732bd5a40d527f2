import pytest
from jobcluster_worker.cgroup import cpu

CPU_STAT = """usage_usec 1234567
user_usec 1000000
system_usec 234567
nr_periods 20
nr_throttled 10
throttled_usec 500000
"""


@pytest.mark.parametrize(
    ("cores", "quota", "weight"),
    [
        (0.5, "50000 100000", "50"),
        (2, "200000 100000", "200"),
        (0.0001, "1000 100000", "1"),
        (512, "51200000 100000", "10000"),
    ],
)
def test_cores_become_a_quota_and_a_weight_within_the_kernels_bounds(
    cores: float, quota: str, weight: str
) -> None:
    assert cpu.values({"cpu": cores}) == [("cpu.max", quota), ("cpu.weight", weight)]


@pytest.mark.parametrize("limits", [{}, {"cpu": 0}, {"cpu": None}])
def test_no_limit_writes_nothing(limits: dict[str, float | None]) -> None:
    assert cpu.values(limits) == []


def test_cpu_max_is_read_back_as_cores() -> None:
    assert cpu.parse_max("50000 100000\n") == 0.5
    assert cpu.parse_max("max 100000\n") is None


def test_cpu_stat_without_the_controller_has_no_throttling() -> None:
    assert cpu.parse_stat(CPU_STAT) == {"cpu_seconds": 1.234567, "cpu_throttled_seconds": 0.5}
    assert cpu.parse_stat("usage_usec 5\nuser_usec 5\n") == {
        "cpu_seconds": 5e-6,
        "cpu_throttled_seconds": None,
    }
