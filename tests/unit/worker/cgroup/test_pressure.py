from jobcluster_worker.cgroup import pressure

# A group of Linux 6.1.192 (two CPUs) after three seconds of one spinner at cpu.max "20000 100000".
CPU = """some avg10=13.76 avg60=2.48 avg300=0.51 total=2399530
full avg10=13.76 avg60=2.48 avg300=0.51 total=2399408
"""
IDLE = """some avg10=0.00 avg60=0.00 avg300=0.00 total=0
full avg10=0.00 avg60=0.00 avg300=0.00 total=0
"""


def test_the_totals_are_seconds_by_resource_and_kind() -> None:
    assert pressure.parse({"cpu": CPU, "memory": IDLE, "io": CPU}) == {
        "cpu_pressure_some_seconds": 2.39953,
        "cpu_pressure_full_seconds": 2.399408,
        "memory_pressure_some_seconds": 0.0,
        "memory_pressure_full_seconds": 0.0,
        "io_pressure_some_seconds": 2.39953,
        "io_pressure_full_seconds": 2.399408,
    }


def test_what_the_kernel_does_not_count_is_none_and_not_nought() -> None:
    counted = pressure.parse({"cpu": CPU.splitlines()[0], "memory": None})
    assert counted.pop("cpu_pressure_some_seconds") == 2.39953
    assert len(counted) == 5 and set(counted.values()) == {None}


def test_a_file_that_is_there_and_empty_counts_nothing() -> None:
    assert set(pressure.parse({"cpu": "", "io": "\n"}).values()) == {None}
