#!/usr/bin/env bash
# A job template: greets whoever its arguments name, and says where it runs.
set -euo pipefail

printf 'Hello %s, from bash.\n' "${*:-world}"
printf 'job %s, task %s of %s, attempt %s\n' \
  "${JOBCLUSTER_JOB_ID:-none}" "${JOBCLUSTER_TASK_RANK:-0}" "${JOBCLUSTER_TASK_COUNT:-1}" "${JOBCLUSTER_ATTEMPT:-1}"
printf 'script %s, work directory %s\n' "$0" "$PWD"
