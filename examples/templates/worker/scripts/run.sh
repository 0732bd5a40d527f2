#!/usr/bin/env bash
# The job of the shortest request there is: {"worker_id": "…", "path": "worker/scripts/run.sh", "command": "bash"}
set -euo pipefail

printf 'worker %s runs job %s\n' "${JOBCLUSTER_WORKER_ID:-none}" "${JOBCLUSTER_JOB_ID:-none}"
for step in 1 2 3; do
  printf 'step %s of 3\n' "$step"
done
printf 'done\n'
