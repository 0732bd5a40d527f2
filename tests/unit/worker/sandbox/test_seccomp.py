import struct
from pathlib import Path

import pytest
from jobcluster_worker.sandbox import libc, seccomp

EPERM = seccomp.ERRNO | seccomp.EPERM
ENOSYS = seccomp.ERRNO | seccomp.ENOSYS


def answer(program: bytes, nr: int, arch: int, args: tuple[int, ...] = ()) -> int:
    """Runs the program as the kernel's classic BPF machine would, for the few instructions that we use."""
    data = struct.pack("<iIQ6Q", nr, arch, 0, *(args + (0,) * 6)[:6])
    position = accumulator = 0
    while True:
        code, if_true, if_false, k = struct.unpack_from("<HBBI", program, position * 8)
        position += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif code == 0x15:
            position += if_true if accumulator == k else if_false
        elif code == 0x45:
            position += if_true if accumulator & k else if_false
        else:
            assert code == 0x06
            return int(k)


def numbers_of(machine: str) -> dict[str, int]:
    """By the kernel's own headers."""
    column = 1 if machine == "x86_64" else 2
    lines = Path(__file__).with_name("syscalls.txt").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


MACHINES = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
READ = {"x86_64": 0, "aarch64": 63}
CLONE = {"x86_64": 56, "aarch64": 220}
SECCOMP = {"x86_64": 317, "aarch64": 277}


@MACHINES
def test_each_call_on_the_list_is_refused_and_an_ordinary_one_is_not(machine: str) -> None:
    program, arch = seccomp.program(machine), seccomp.AUDIT_ARCH[machine]
    numbers = seccomp.denied_numbers(machine)
    assert len(numbers) > 40
    assert {answer(program, number, arch) for number in numbers} == {EPERM}
    assert answer(program, READ[machine], arch) == seccomp.ALLOW


@MACHINES
def test_the_filter_refuses_those_calls_that_the_kernels_headers_give_these_numbers(machine: str) -> None:
    kernel, arch = numbers_of(machine), seccomp.AUDIT_ARCH[machine]
    denied = {name: kernel[name] for name, *_ in seccomp.DENIED if name in kernel}
    assert sorted(denied.values()) == sorted(seccomp.denied_numbers(machine))
    program = seccomp.program(machine)
    refused = {nr for nr in range(1024) if answer(program, nr, arch) == EPERM}
    assert refused == set(denied.values())
    asked = (kernel["clone"], kernel["clone3"], kernel["seccomp"])
    assert asked == (CLONE[machine], seccomp.CLONE3, SECCOMP[machine])
    assert {name: kernel[name] for name in libc._NUMBERS[machine]} == libc._NUMBERS[machine]
    assert {name: kernel[name] for name in libc._COMMON} == libc._COMMON


@MACHINES
def test_a_foreign_architecture_is_refused_whatever_it_calls(machine: str) -> None:
    i386 = 0x40000003
    assert {answer(seccomp.program(machine), number, i386) for number in range(500)} == {EPERM}


def test_the_x32_numbers_are_refused() -> None:
    program = seccomp.program("x86_64")
    assert answer(program, seccomp.X32_BIT | 0, seccomp.AUDIT_ARCH["x86_64"]) == EPERM


@MACHINES
def test_clone_may_make_threads_and_processes_but_no_namespace(machine: str) -> None:
    program, arch = seccomp.program(machine), seccomp.AUDIT_ARCH[machine]
    thread = 0x003D0F00
    assert answer(program, CLONE[machine], arch, (thread,)) == seccomp.ALLOW
    for flag in (
        libc.CLONE_NEWUSER,
        libc.CLONE_NEWNS,
        libc.CLONE_NEWNET,
        libc.CLONE_NEWPID,
        libc.CLONE_NEWCGROUP,
    ):
        assert answer(program, CLONE[machine], arch, (thread | flag,)) == EPERM


@MACHINES
def test_clone3_does_not_exist_so_that_libraries_fall_back_to_clone(machine: str) -> None:
    arch = seccomp.AUDIT_ARCH[machine]
    assert answer(seccomp.program(machine), seccomp.CLONE3, arch) == ENOSYS
    asking = seccomp.program(machine, clone3=seccomp.USER_NOTIFY)
    assert answer(asking, seccomp.CLONE3, arch) == seccomp.USER_NOTIFY


@MACHINES
def test_a_job_may_add_filters_but_none_with_a_listener(machine: str) -> None:
    program, arch = seccomp.program(machine), seccomp.AUDIT_ARCH[machine]
    assert answer(program, SECCOMP[machine], arch, (1, 0)) == seccomp.ALLOW
    assert answer(program, SECCOMP[machine], arch, (1, 1 << 3)) == EPERM


def test_every_jump_of_the_programs_lands_inside_them() -> None:
    for machine in seccomp.AUDIT_ARCH:
        program = seccomp.program(machine)
        length = len(program) // 8
        for position, (code, if_true, if_false, _) in enumerate(struct.iter_unpack("<HBBI", program)):
            if code in (0x15, 0x45):
                assert position + 1 + max(if_true, if_false) < length
