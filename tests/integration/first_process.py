"""Runs a command as the first process of a pid namespace, as in a container; prints its pid outside of it.

``python first_process.py PROGRAM ARGUMENT…``; needs root.
"""

from __future__ import annotations

import os
import sys

from jobcluster_worker.sandbox import libc

if __name__ == "__main__":
    libc.unshare(libc.CLONE_NEWPID | libc.CLONE_NEWNS)
    pid = os.fork()
    if pid == 0:
        libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
        libc.mount("proc", "/proc", "proc")
        os.execv(sys.argv[1], sys.argv[1:])
    sys.stdout.write(f"{pid}\n")
    sys.stdout.flush()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os._exit(code if code >= 0 else 128 - code)
