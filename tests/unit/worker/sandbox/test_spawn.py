import errno
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

Room = Any  # the fixture class of conftest.py
WAYS = pytest.mark.parametrize("way", ["thread", "fork"])


def status_of(room: Room, **request: Any) -> dict[str, str]:
    text = room.shell("cat /proc/self/status", **request)
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


@WAYS
def test_as_root_a_task_has_a_uid_of_its_own_and_no_rights(root_room: Room, way: str) -> None:
    status = status_of(root_room, way=way)
    assert status["Uid"].split() == ["100007"] * 4
    assert status["Gid"].split() == ["100007"] * 4
    assert status["Groups"] == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name


@WAYS
@pytest.mark.parametrize("whose", ["root_room", "plain_room"])
def test_no_new_privileges_and_a_filter_hold_for_everyone(
    request: pytest.FixtureRequest, whose: str, way: str
) -> None:
    status = status_of(request.getfixturevalue(whose), way=way)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


@WAYS
@pytest.mark.parametrize("whose", ["root_room", "plain_room"])
def test_descriptors_are_exactly_0_1_and_2(request: pytest.FixtureRequest, whose: str, way: str) -> None:
    room = request.getfixturevalue(whose)
    # ls itself holds one more, the directory it reads.
    assert room.shell("ls /proc/self/fd", way=way).split() == ["0", "1", "2", "3"]


@WAYS
def test_signals_are_at_their_defaults_and_none_is_blocked(plain_room: Room, way: str) -> None:
    status = status_of(plain_room, way=way)
    # Bits of 32 and 33 are glibc's own, which its posix_spawn ignores itself until a program uses threads.
    assert int(status["SigIgn"], 16) & ~(3 << 31) == 0
    assert int(status["SigBlk"], 16) == 0
    assert plain_room.run("/bin/sh", "-c", "kill -PIPE $$", way=way)["status"] == -13


@WAYS
def test_a_task_leads_a_session_of_its_own(plain_room: Room, way: str) -> None:
    answer = plain_room.run("/bin/sh", "-c", "cut -d' ' -f6 /proc/$$/stat", way=way)
    assert int(answer["output"]) == answer["pid"]


@WAYS
def test_the_environment_is_what_was_given_and_the_umask_is_022(plain_room: Room, way: str) -> None:
    answer = plain_room.ask("run", argv=["/usr/bin/env"], env={"A": "1", "B": "x y"}, way=way)
    assert sorted(answer["output"].splitlines()) == ["A=1", "B=x y"]
    assert plain_room.shell("umask", way=way).strip() == "0022"


@WAYS
def test_argv_reaches_the_process_byte_for_byte(plain_room: Room, way: str) -> None:
    words = ["; touch /pwn", "$(id)", "a\nb", "-c", "", "ü"]
    answer = plain_room.run("/bin/sh", "-c", 'for w; do printf "[%s]" "$w"; done', "sh", *words, way=way)
    assert answer["output"] == "".join(f"[{word}]" for word in words)


def test_what_the_forked_child_cannot_even_try_is_no_program_that_exited(plain_room: Room) -> None:
    answer = plain_room.run("/bin/true", "a\0b", way="fork")
    assert (answer["errno"], answer["text"]) == (errno.EINVAL, "ValueError: embedded null byte")


@WAYS
def test_the_standard_pipes_can_be_opened_again_by_name(root_room: Room, way: str) -> None:
    assert root_room.shell("echo out >/dev/stdout; echo err >/dev/stderr", way=way) == "out\nerr\n"


@WAYS
@pytest.mark.parametrize("whose", ["root_room", "plain_room"])
class TestExecErrors:
    def test_a_program_that_is_not_there_is_ENOENT(
        self, request: pytest.FixtureRequest, whose: str, way: str
    ) -> None:
        answer = request.getfixturevalue(whose).run("/no/such/program", way=way)
        assert (answer["errno"], answer["filename"]) == (errno.ENOENT, "/no/such/program")

    def test_a_file_without_the_right_to_execute_is_EACCES(
        self, request: pytest.FixtureRequest, whose: str, way: str
    ) -> None:
        assert request.getfixturevalue(whose).run("/etc/passwd", way=way)["errno"] == errno.EACCES

    def test_a_file_of_no_known_format_is_ENOEXEC(
        self, request: pytest.FixtureRequest, whose: str, way: str
    ) -> None:
        room = request.getfixturevalue(whose)
        program(room, "junk", b"\x00\x01junk")
        assert room.run(in_work(room, "junk"), way=way)["errno"] == errno.ENOEXEC

    def test_a_script_whose_interpreter_is_missing_says_so(
        self, request: pytest.FixtureRequest, whose: str, way: str
    ) -> None:
        room = request.getfixturevalue(whose)
        program(room, "script", b"#!/no/such/interpreter -x\n")
        answer = room.run(in_work(room, "script"), way=way)
        assert answer["errno"] == errno.ENOENT
        assert "/no/such/interpreter" in answer["text"]

    def test_a_cwd_that_is_not_there_is_named(
        self, request: pytest.FixtureRequest, whose: str, way: str
    ) -> None:
        answer = request.getfixturevalue(whose).run("/bin/true", cwd="/no/such/directory", way=way)
        assert (answer["errno"], answer["filename"]) == (errno.ENOENT, "/no/such/directory")
        assert "cwd" in answer["text"]


def program(room: Room, name: str, content: bytes) -> None:
    path: Path = room.work / name
    path.write_bytes(content)
    path.chmod(0o755)


def in_work(room: Room, name: str) -> str:
    return str(room.ask("paths")["paths"][0]) + "/" + name


@WAYS
def test_exec_is_checked_with_the_rights_of_the_task_not_of_root(root_room: Room, way: str) -> None:
    program(root_room, "roots", b"#!/bin/sh\necho never\n")
    (root_room.work / "roots").chmod(0o700)
    assert root_room.run(in_work(root_room, "roots"), way=way)["errno"] == errno.EACCES


@WAYS
@pytest.mark.parametrize("whose", ["root_room", "plain_room"])
def test_starts_leave_no_descriptor_thread_mount_or_child(
    request: pytest.FixtureRequest, whose: str, way: str
) -> None:
    room = request.getfixturevalue(whose)
    before = room.ask("count")
    for _ in range(200 if way == "thread" else 40):
        assert room.run("/bin/true", way=way)["status"] == 0
        assert "errno" in room.run("/no/such/program", way=way)
    assert room.counts_as(before), room.ask("count")


@WAYS
def test_starts_from_many_threads_at_once_do_not_mix(root_room: Room, way: str) -> None:
    before = root_room.ask("count")
    argv = ["/bin/sh", "-c", "id -u; ls /proc/self/fd | wc -l; pwd"]
    request = {"argv": argv, "env": {"PATH": "/usr/bin:/bin"}, "way": way, "threads": 8, "each": 10}
    answer = root_room.ask("storm", expected="100007\n4\n/run/jobcluster/work\n", **request)
    assert answer == {"done": 80, "wrong": []}
    assert root_room.counts_as(before), root_room.ask("count")


def test_the_supervisor_keeps_its_own_rights(root_room: Room) -> None:
    before = root_room.ask("count")
    root_room.shell("true", network="none")
    assert root_room.counts_as(before)
    assert before["uid"] == 0
    assert int(before["capabilities"], 16) != 0


def test_jobs_are_to_die_before_the_worker_when_memory_runs_out(plain_room: Room) -> None:
    assert (
        plain_room.shell("while [ $(cat /proc/self/oom_score_adj) != 500 ]; do :; done; echo seen")
        == "seen\n"
    )


def test_no_task_dumps_core(plain_room: Room) -> None:
    assert plain_room.shell("ulimit -c; ulimit -Hc").split() == ["0", "0"]


@pytest.mark.parametrize("whose", ["root_room", "plain_room"])
def test_threads_start_in_a_task(request: pytest.FixtureRequest, whose: str) -> None:
    python = system_python()
    if python is None:
        pytest.skip("no python3 that every user may run")
    script = (
        "import threading\nt = threading.Thread(target=print, args=('from a thread',))\nt.start()\nt.join()"
    )
    assert request.getfixturevalue(whose).run(python, "-c", script)["output"] == "from a thread\n"


def system_python() -> str | None:
    for name in ("/usr/local/bin/python3", "/usr/bin/python3"):
        path = Path(os.path.realpath(name))
        parents = [path, *path.parents]
        if path.exists() and all(parent.stat().st_mode & stat.S_IXOTH for parent in parents):
            return name
    return None


ACROSS = """
import os, socket, sys
def tried(attempt):
    try:
        attempt()
        return "done"
    except PermissionError:
        return "refused"
print(tried(lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[1].replace("@", chr(0)))))
print(tried(lambda: os.kill(os.getppid(), 0)))
"""


@WAYS
@pytest.mark.parametrize("whose", ["root_room", "plain_room"])
def test_signals_and_abstract_sockets_go_across_only_where_it_is_said(
    request: pytest.FixtureRequest, whose: str, way: str
) -> None:
    room, python = request.getfixturevalue(whose), system_python()
    if python is None:
        pytest.skip("no python3 that every user may run")
    name = f"jobcluster-test-{os.getpid()}-{whose}-{way}"
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"\0{name}")
        door.listen()
        said = room.run(python, "-c", ACROSS, f"@{name}", way=way)["output"].split()
    scoped = room.enforced["no signals or abstract sockets across"] == "yes"
    of_another_user = whose == "root_room"
    assert said == ["refused" if scoped else "done", "refused" if scoped or of_another_user else "done"]
