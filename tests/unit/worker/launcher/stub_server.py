"""Stands where the gRPC server stands: a process that the launcher starts, told by BEHAVIOUR how to act."""

import json
import os
import signal
import sys
import time
from pathlib import Path

behaviour = os.environ.get("BEHAVIOUR", "clean")
with Path(os.environ["STARTS_FILE"]).open("a") as starts:
    starts.write(json.dumps({"pid": os.getpid(), "argv": sys.argv[1:]}) + "\n")
if behaviour == "crash":
    sys.exit(1)


def end_slowly(*_: object) -> None:
    time.sleep(2.5)
    sys.exit(0)


if behaviour == "refuse":
    sys.exit(2)
if behaviour == "hang":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if behaviour == "slow":
    signal.signal(signal.SIGTERM, end_slowly)
if behaviour == "clean":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    time.sleep(3600)
