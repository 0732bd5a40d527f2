from jobcluster_worker.cgroup import io

IO_MAX = "8:0 rbps=max wbps=2097152 riops=max wiops=120\n8:16 rbps=1 wbps=1 riops=1 wiops=1\n"
IO_STAT = """8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0
253:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0
7:0
"""


def test_limits_name_the_device_and_only_what_is_set() -> None:
    limits = {"io": {"write_bps": 2 << 20, "read_iops": 100, "read_bps": 0}}
    assert io.values(limits, "8:0") == [("io.max", "8:0 wbps=2097152 riops=100")]


def test_without_limits_or_without_a_device_nothing_is_written() -> None:
    assert io.values({}, "8:0") == io.values({"io": {"read_bps": 0}}, "8:0") == []
    assert io.values({"io": {"read_bps": 1}}, None) == []


def test_the_devices_own_line_is_read_back() -> None:
    assert io.parse_max(IO_MAX, "8:0") == {
        "read_bps": None,
        "write_bps": 2097152,
        "read_iops": None,
        "write_iops": 120,
    }
    assert set(io.parse_max("", "8:0").values()) == {None}
    assert set(io.parse_max(IO_MAX, None).values()) == {None}


def test_bytes_are_counted_once_though_the_kernel_counts_each_layer() -> None:
    assert io.devices_of(IO_STAT) == ["8:0", "253:0", "7:0"]
    assert io.parse_stat(IO_STAT, stacked=["253:0"]) == {"io_read_bytes": 4096, "io_write_bytes": 8192}
    assert io.parse_stat(IO_STAT) == {"io_read_bytes": 8192, "io_write_bytes": 16384}
    assert io.parse_stat("") == {"io_read_bytes": 0, "io_write_bytes": 0}
