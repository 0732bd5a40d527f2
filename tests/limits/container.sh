#!/bin/sh
# Puts a program where a container engine would: container.sh GROUP private|host MORE COMMAND...
# In a group of its own, then a pid, a mount and (private) a cgroup namespace. MORE is run inside, before COMMAND; with
# MORE = "init" COMMAND is not the container's first process.
set -e
if [ "$1" = inside ]; then
  more=$2; shift 2
  if [ "$(cat /proc/self/cgroup)" = "0::/" ]; then  # a private namespace is seen through a mount of its own
    umount -l /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
  fi
  case $more in
    init) "$@"; exit ;;
    "") ;;
    *) eval "$more" ;;
  esac
  exec "$@"
elif [ "$1" = entered ]; then
  group=$2 kind=$3; shift 3
  mkdir -p "$group"
  echo 0 > "$group/cgroup.procs"
  if [ "$kind" = private ]; then exec unshare --cgroup sh "$0" inside "$@"; fi
  exec sh "$0" inside "$@"
fi
# The process that makes the namespaces stays outside of the group.
exec unshare --pid --fork --kill-child --mount-proc sh "$0" entered "$@"
