import os
from pathlib import Path

import pytest
from jobcluster_worker.cgroup import device

MOUNTINFO = """22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
23 22 0:21 / /proc rw - proc proc rw
30 22 0:40 / /data rw - overlay overlay rw,lowerdir=/l1:/l2,upperdir=/var/lib/docker/overlay2/x/diff,workdir=/w
31 30 0:41 / /data/with\\040space rw - btrfs /dev/sda2 rw,space_cache=v2
32 22 0:42 / /data rw - tmpfs tmpfs rw,size=1m
"""


@pytest.mark.parametrize(
    ("directory", "kind", "source"),
    [
        ("/", "ext4", "/dev/vda"),
        ("/data", "tmpfs", "tmpfs"),
        ("/database", "ext4", "/dev/vda"),
        ("/proc/1", "proc", "proc"),
    ],
)
def test_the_mount_of_a_directory_is_the_deepest_and_the_last(directory: str, kind: str, source: str) -> None:
    assert device.mount_of(Path(directory), MOUNTINFO)[:2] == (kind, source)


def test_a_mount_point_with_a_space_is_found() -> None:
    found = device.mount_of(Path("/data/with space"), MOUNTINFO)
    assert found == ("btrfs", "/dev/sda2", "rw,space_cache=v2")


def test_a_tmpfs_has_no_device_and_says_what_to_do() -> None:
    with pytest.raises(device.NoDevice, match=r"tmpfs.*put the data directory on a disk"):
        device.block_device(Path("/dev/shm"))


def test_an_overlay_whose_upper_layer_is_not_visible_says_so() -> None:
    with pytest.raises(device.NoDevice, match="volume"):
        device._below_overlay(Path("/data"), "rw,lowerdir=/l,upperdir=/no/such/upper")


def test_a_visible_upper_layer_gives_its_disk(tmp_path: Path) -> None:
    try:
        expected = device.block_device(tmp_path)
    except device.NoDevice as error:
        pytest.skip(f"no disk under the tests' directory: {error}")
    assert device._below_overlay(Path("/"), f"rw,upperdir={tmp_path},workdir=/w") == expected


DISKS = {  # by what sysfs calls them: number, and what they are made of
    "sda": ("8:0", ()),
    "sda/sda2": ("8:2", ()),
    "nvme0n1": ("259:0", ()),
    "nvme0n1/nvme0n1p1": ("259:1", ()),
    "loop0": ("7:0", ()),
    "loop0/loop0p1": ("259:5", ()),
    "dm-0": ("253:0", ("sda2",)),
    "md127": ("9:127", ("sda2", "nvme0n1p1")),
    "md127/md127p1": ("259:6", ()),
}


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """A tree as the kernel has it in /sys/dev/block: links by number to directories of which partitions are inside."""
    links = tmp_path / "dev" / "block"
    links.mkdir(parents=True)
    for name, (number, slaves) in DISKS.items():
        entry = tmp_path / "devices" / name
        (entry / "slaves").mkdir(parents=True)
        (entry / "dev").write_text(f"{number}\n")
        for slave in slaves:
            (entry / "slaves" / slave).mkdir()
        if "/" in name:
            (entry / "partition").write_text("1\n")
        (links / number).symlink_to(f"../../devices/{name}")
    return links


@pytest.mark.parametrize(
    ("given", "limited"),
    [
        ("8:0", "8:0"),
        ("8:2", "8:0"),  # the kernel refuses a partition: ENODEV
        ("259:1", "259:0"),
        ("259:5", "7:0"),
        ("253:0", "253:0"),  # a mapped device has a queue of its own
        ("9:127", "9:127"),
        ("259:6", "9:127"),
    ],
)
def test_the_device_that_is_limited_is_the_whole_one(known: Path, given: str, limited: str) -> None:
    major, minor = map(int, given.split(":"))
    assert device.disk_of(os.makedev(major, minor), known) == limited


def test_devices_made_of_others_are_known_so_that_no_byte_is_counted_twice(known: Path) -> None:
    stacked = {name for name, (number, _) in DISKS.items() if device.is_stacked(number, known)}
    assert stacked == {"dm-0", "md127"}


def test_a_disk_gives_itself_and_an_unknown_number_is_an_error() -> None:
    whole = [entry.name for entry in Path("/sys/dev/block").iterdir() if not (entry / "partition").exists()]
    for name in whole[:3]:
        major, minor = name.split(":")
        assert device.disk_of(os.makedev(int(major), int(minor))) == name
    with pytest.raises(device.NoDevice, match="4000:1"):
        device.disk_of(os.makedev(4000, 1))
