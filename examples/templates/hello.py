#!/usr/bin/env python3
"""A job template: greets whoever its arguments name, and reads a file that lies beside it."""

import os
import sys
from pathlib import Path

print(f"Hello {' '.join(sys.argv[1:]) or 'world'}, from Python {sys.version.split()[0]}.")
print(
    f"job {os.environ.get('JOBCLUSTER_JOB_ID', 'none')}, worker {os.environ.get('JOBCLUSTER_WORKER_ID', 'none')}"
)
print("templates beside this one:", " ".join(sorted(p.name for p in Path(__file__).parent.glob("hello.*"))))
