"""Process trees that do not want to end. Each says its uid once all of it is there, and would then run for ever.

Shell where a shell will do; the others, which begin with an import, are Python.
"""

_FORKED = """import os, signal, time
def forever():
    while True: time.sleep(600)
def ready(): os.write(1, str(os.getuid()).encode() + b'\\n')
"""
_CALL = "import ctypes, os, signal, time\nlibc = ctypes.CDLL(None)\n" + _FORKED

_SHELL = {
    "a child in another session": "setsid sleep 600 & READY; wait",
    "a daemon by double fork": "(setsid sleep 600 & ) ; READY; sleep 600",
    "nohup": "nohup sleep 600 & READY; wait",
    "TERM ignored by all": "trap '' TERM INT HUP; (while :; do sleep 1; done) & READY; while :; do sleep 1; done",
    "TERM answered by another child": "trap 'sleep 600 &' TERM; READY; while :; do sleep 0.1; done",
    "TERM answered by exec": "trap 'exec sleep 600' TERM; READY; while :; do sleep 0.1; done",
    "a child that stopped itself": "sh -c 'kill -STOP $$' & READY; sleep 600",
    "a leader that stopped itself": "sleep 600 & READY; kill -STOP $$",
    "all stopped, TERM ignored": "trap '' TERM; sh -c 'kill -STOP $$' & READY; kill -STOP $$",
    "a fork storm": "READY; f() { f | f & }; f; sleep 600",
    "jobs in process groups of their own": "exec bash -mc 'sleep 600 & sleep 600 & READY; wait'",
    "a deep chain of sessions": '[ "$1" = ooooooooooo ] && { READY; exec sleep 600; }; setsid sh -c "$0" "$0" o$1; :',
    "stuck on a fifo": "mkfifo p; cat p & READY; exec cat p",
    "its directory removed": "mkdir d; cd d; rmdir ../d; sleep 600 & READY; wait",
    "its program removed": "cp $(command -v sleep) nap; ./nap 600 & rm nap; READY; wait",
    "another name": "cp $(command -v sleep) '[kworker]'; ./\\[kworker\\] 600 & READY; wait",
    "execs without end": '[ -e said ] || { : > said; READY; }; exec sh -c "$0" "$0"',
    "pipes held by a daemon": "(trap '' TERM; setsid sleep 600 & ) ; READY; exec 1>&2; sleep 600",
}

_PYTHON = {
    "threads and every signal blocked": _FORKED
    + """import threading
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
for _ in range(8): threading.Thread(target=forever).start()
ready(); forever()""",
    "zombies kept": _FORKED
    + """for _ in range(20):
    if os.fork() == 0: os._exit(0)
ready(); forever()""",
    "a pid that changes all the time": _FORKED
    + """signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    ready()
    while True:
        if os.fork(): os._exit(0)
forever()""",
    "a child of vfork that does not exec": _CALL
    + """if libc.vfork() == 0:
    ready(); libc.pause()""",
    "a program in memory": _FORKED
    + """fd = os.memfd_create('x')
os.write(fd, open('/bin/sleep', 'rb').read())
if os.fork() == 0:
    os.setsid(); ready(); os.execve(fd, ['x', '600'], {})
forever()""",
    "a child stopped by its tracer": _CALL
    + """if os.fork() == 0:
    libc.ptrace(0, 0, 0, 0); os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(-1, os.WUNTRACED); ready(); forever()""",
    "a child raised again by its parent": _FORKED
    + """signal.signal(signal.SIGTERM, signal.SIG_IGN)
ready()
while True:
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL); forever()
    os.wait()""",
}


def _spec(name: str) -> dict[str, object]:
    if name in _PYTHON:
        return {"command": "/usr/bin/python3", "path": "tree.py", "files": {"tree.py": _PYTHON[name]}}
    script = _SHELL[name].replace("READY", "id -u")
    return {"command": "sh", "args": ["-c", script, script]}


BUSY = {"a fork storm", "execs without end", "a pid that changes all the time"}
NASTY = {name: _spec(name) for name in (*_SHELL, *_PYTHON)}

# Their leader ends by itself with code 3 and leaves the rest, which holds its pipes.
LEFT_BEHIND = {
    "a child": "sleep 600 & exit 3",
    "a daemon": "(setsid sleep 600 & ) ; exit 3",
    "a daemon that ignores TERM": "(trap '' TERM; setsid sh -c 'while :; do sleep 1; done' & ) ; exit 3",
    "a stopped child": "sh -c 'kill -STOP $$; sleep 600' & exit 3",
    "a fork storm": "f() { f | f & }; f; exit 3",
}
