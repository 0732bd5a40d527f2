"""Orphans are found and reaped to the last one, in a process that is a subreaper."""

from __future__ import annotations

import subprocess
import sys

# The middle one ends at the worst moment: after the children were listed, before they are reaped. Its own child, which
# was in no list yet, becomes ours then.
SCRIPT = """
import os, signal
from jobcluster_worker.launcher import processes
from jobcluster_worker.launcher.orphans import Orphans

processes.become_subreaper()
reader, writer = os.pipe()
middle = os.fork()
if middle == 0:
    last = os.fork()
    if last == 0:
        signal.pause()
    os.write(writer, str(last).encode())
    signal.pause()
last = int(os.read(reader, 20))
ended = []

def is_leader(pid):
    if not ended:
        ended.append(pid)
        for other in (last, middle):
            os.kill(other, signal.SIGKILL)
        os.waitid(os.P_PID, middle, os.WEXITED | os.WNOWAIT)
    return False

orphans = Orphans(is_leader, lambda uid: False)
gone = orphans.look()
if orphans.any():
    os.waitid(os.P_PID, last, os.WEXITED | os.WNOWAIT)
    gone += orphans.look()
print(len(gone), orphans.any(), processes.children())
"""


def test_whoever_comes_while_its_parent_is_reaped_is_not_missed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == "2 False []\n"
