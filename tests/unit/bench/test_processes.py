from __future__ import annotations

import os
import subprocess
import sys

from bench.processes import cpu_of, rss_of, tree_of


def test_a_tree_has_its_root_and_all_below() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert {os.getpid(), child.pid} <= tree_of([os.getpid()])
        assert tree_of([child.pid]) == {child.pid}
    finally:
        child.communicate(b"\n", timeout=30)


def test_time_and_memory_are_those_of_the_processes() -> None:
    assert cpu_of([os.getpid()]) > 0
    assert rss_of([os.getpid()]) > 1 << 20


def test_a_process_that_is_gone_counts_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(30)
    assert (cpu_of([child.pid]), rss_of([child.pid])) == (0, 0)
