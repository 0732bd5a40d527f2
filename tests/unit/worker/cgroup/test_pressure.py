from jobcluster_worker.cgroup import pressure

# As Linux 6.1 writes them.
CPU = """some avg10=71.51 avg60=17.85 avg300=4.06 total=12868931
full avg10=68.13 avg60=16.98 avg300=3.86 total=12240019
"""
MEMORY = """some avg10=0.00 avg60=0.00 avg300=0.00 total=0
full avg10=0.00 avg60=0.00 avg300=0.00 total=0
"""
IO = """some avg10=1.08 avg60=0.32 avg300=0.08 total=1500000
full avg10=1.08 avg60=0.32 avg300=0.08 total=1250001
"""


def test_the_totals_are_seconds_by_resource_and_kind() -> None:
    assert pressure.parse({"cpu": CPU, "memory": MEMORY, "io": IO}) == {
        "cpu_pressure_some_seconds": 12.868931,
        "cpu_pressure_full_seconds": 12.240019,
        "memory_pressure_some_seconds": 0.0,
        "memory_pressure_full_seconds": 0.0,
        "io_pressure_some_seconds": 1.5,
        "io_pressure_full_seconds": 1.250001,
    }


def test_what_the_kernel_does_not_count_is_none_and_not_nought() -> None:
    counted = pressure.parse({"cpu": CPU.splitlines()[0], "memory": None})
    assert counted.pop("cpu_pressure_some_seconds") == 12.868931
    assert len(counted) == 5 and set(counted.values()) == {None}


def test_a_file_that_is_there_and_empty_counts_nothing() -> None:
    assert set(pressure.parse({"cpu": "", "io": "\n"}).values()) == {None}
