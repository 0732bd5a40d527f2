import errno
import os
from pathlib import Path
from typing import Any

import pytest
from jobcluster_worker.sandbox import confine, libc
from jobcluster_worker.sandbox.confine import Confinement

Room = Any  # the fixture class of conftest.py


def test_entering_before_the_host_is_prepared_is_refused(tmp_path: Path) -> None:
    if confine._powers is not None:
        pytest.skip("another test of this process has prepared it")
    with pytest.raises(OSError, match="prepare_host"):
        confine.enter(Confinement(None, None, tmp_path))


def test_as_root_a_start_without_an_own_uid_is_refused(root_room: Room) -> None:
    for uid in (None, 0, -1):
        answer = root_room.run("/bin/true", uid=uid)
        assert answer["errno"] == errno.EPERM
        assert "uid" in answer["text"]


def test_the_work_directory_is_at_a_fixed_place_and_belongs_to_the_task(root_room: Room) -> None:
    assert root_room.ask("paths")["paths"] == [confine.WORK, ""]
    assert root_room.shell("pwd; echo hello > file; cat file") == f"{confine.WORK}\nhello\n"
    assert (root_room.work / "file").read_text() == "hello\n"


def test_as_a_plain_user_paths_are_the_real_ones(plain_room: Room, tmp_path: Path) -> None:
    found = plain_room.ask("paths", templates=str(tmp_path))["paths"]
    assert found == [str(plain_room.work), str(tmp_path)]


def test_templates_are_seen_read_only_also_from_a_place_others_cannot_reach(root_room: Room) -> None:
    private = root_room.place / "private"
    (private / "templates").mkdir(parents=True, exist_ok=True)
    (private / "templates" / "hello.sh").write_text("#!/bin/sh\necho hello from $0\n")
    (private / "templates" / "hello.sh").chmod(0o755)
    private.chmod(0o700)
    script = f"{confine.TEMPLATES}/hello.sh"
    request = {"templates": str(private / "templates")}
    assert root_room.run(script, **request)["output"] == f"hello from {script}\n"
    assert "Read-only" in root_room.shell(f"echo x 2>&1 > {confine.TEMPLATES}/new", **request)


def test_hidden_directories_and_files_are_empty_and_shut(root_room: Room) -> None:
    secrets = root_room.place / "secrets"
    secrets.mkdir(exist_ok=True)
    (secrets / "key.pem").write_text("canary-a")
    (root_room.place / "token").write_text("canary-b")
    # Below /tmp nothing of the host is seen anyway; what is hidden must be seen otherwise.
    aside = Path("/opt") / f"jobcluster-test-{os.getpid()}"
    aside.mkdir()
    try:
        (aside / "token").write_text("canary-c")
        (aside / "keys").mkdir()
        (aside / "keys" / "key.pem").write_text("canary-d")
        script = f"cat {aside}/token {aside}/keys/* 2>&1"
        assert "canary-c" in root_room.shell(script)
        seen = root_room.shell(script, hide=[str(aside / "token"), str(aside / "keys"), str(aside / "none")])
        assert "canary" not in seen
        denied = root_room.shell(f"echo x > {aside}/keys/new || echo denied", hide=[str(aside / "keys")])
        assert "denied" in denied
    finally:
        for path in ("token", "keys/key.pem"):
            (aside / path).unlink()
        (aside / "keys").rmdir()
        aside.rmdir()


def test_tmp_is_the_tasks_own_and_gone_with_it(root_room: Room) -> None:
    script = "ls -A /tmp /var/tmp /dev/shm; echo x > /tmp/mine; echo x > /dev/shm/mine"
    assert "mine" not in root_room.shell(script)
    assert "mine" not in root_room.shell(script)
    assert not Path("/tmp/mine").exists()


def test_dev_has_the_harmless_devices_only(root_room: Room) -> None:
    names = root_room.shell("ls /dev").split()
    assert sorted(names) == sorted(
        [
            "fd",
            "full",
            "null",
            "ptmx",
            "pts",
            "random",
            "shm",
            "stderr",
            "stdin",
            "stdout",
            "tty",
            "urandom",
            "zero",
        ]
    )
    assert root_room.shell("head -c 3 /dev/zero | wc -c; echo x > /dev/null && echo ok").split() == [
        "3",
        "ok",
    ]


def test_proc_shows_the_tasks_own_processes_only(root_room: Room) -> None:
    pids = [name for name in root_room.shell("ls /proc").split() if name.isdigit()]
    assert 0 < len(pids) <= 2
    assert "1" not in pids
    assert root_room.shell("cat /proc/cpuinfo | head -1; cat /proc/1/environ 2>&1").count("No such file") == 1


def test_cgroup_files_are_not_seen(root_room: Room) -> None:
    assert root_room.shell("ls -A /sys/fs/cgroup") == ""


def test_the_namespaces_are_the_tasks_own(root_room: Room) -> None:
    for name in ("mnt", "ipc", "uts"):
        assert root_room.shell(f"readlink /proc/self/ns/{name}").strip() != os.readlink(
            f"/proc/self/ns/{name}"
        )
    assert root_room.shell("readlink /proc/self/ns/net").strip() == os.readlink("/proc/self/ns/net")


def test_network_none_is_a_loopback_that_answers_and_nothing_else(root_room: Room) -> None:
    devices = root_room.shell("cat /proc/net/dev", network="none").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]
    assert root_room.shell("readlink /proc/self/ns/net", network="none").strip() != os.readlink(
        "/proc/self/ns/net"
    )


def test_network_none_that_cannot_be_had_fails_the_start(plain_room: Room) -> None:
    answer = plain_room.run("/bin/true", network="none")
    assert answer["errno"] == errno.EPERM
    assert "network" in answer["text"]


@pytest.mark.parametrize(
    "attempt",
    [
        "echo core > /proc/sys/kernel/core_pattern",
        "echo b > /proc/sysrq-trigger",
        "mount -t tmpfs none /tmp",
        "unshare -Ur true",
        "unshare -m true",
        "mknod /tmp/disk b 8 0",
        "chroot / true",
        "nsenter -t 1 -m true",
        "umount /proc",
        "kill -0 1",
        "hostname other",
        "ls /proc/1/fd",
        "cat /proc/1/environ",
        "cat /proc/kcore",
    ],
)
def test_a_hostile_task_is_refused(root_room: Room, attempt: str) -> None:
    assert root_room.shell(f"({attempt}) >/dev/null 2>&1 && echo done || echo refused") == "refused\n"


def test_a_step_that_fails_fails_the_start_and_leaves_nothing(root_room: Room) -> None:
    before = root_room.ask("count")
    answer = root_room.run("/bin/true", templates="/no/such/templates")
    assert answer["errno"] == errno.ENOENT
    assert "/run/jobcluster/templates" in answer["text"]
    answer = root_room.run("/bin/true", work="/no/such/work")
    assert answer["errno"] == errno.ENOENT
    assert root_room.counts_as(before), root_room.ask("count")


def test_what_is_enforced_is_said_in_words(root_room: Room, plain_room: Room) -> None:
    assert set(root_room.enforced) == set(plain_room.enforced)
    assert root_room.enforced["own uid, no capabilities"] == "yes"
    assert plain_room.enforced["own uid, no capabilities"].startswith("no: ")
    assert plain_room.enforced["no_new_privs"] == "yes"


def test_the_fixed_points_are_not_seen_by_the_host(root_room: Room) -> None:
    assert root_room.ask("count")["mount_namespace"] != os.readlink("/proc/self/ns/mnt")
    assert not Path(confine.WORK).exists()


def test_errors_of_the_c_library_name_their_step() -> None:
    with pytest.raises(FileNotFoundError, match="mount nothing on /no/such/place"):
        libc.mount("nothing", "/no/such/place")
