#!/bin/sh
# The first process of the guest (guest.py). $GUEST_CONTROL, a directory of the host, comes from the kernel's command
# line; it holds what to mount and what to run, and takes the exit status.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs guest /mnt
mkdir -p /mnt/control /mnt/scratch /dev/pts /dev/shm
mount -t hostfs -o "$GUEST_CONTROL" none /mnt/control
for place in /dev/shm /tmp /run /var/tmp; do mount -t tmpfs guest $place; done
chmod 1777 /tmp /var/tmp /dev/shm
mount -t devpts devpts /dev/pts
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t ext4 /dev/ubda /mnt/scratch
ip link set lo up 2>/dev/null || python3 -c '
import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh22x", b"lo", 1))'
while IFS="	" read -r from to; do
  mkdir -p "$to" 2>/dev/null
  mount -t hostfs -o "$from" none "$to"
done < /mnt/control/shares
ulimit -c 0
export HOME=/tmp LANG=C.UTF-8
cd /
sh /mnt/control/command < /dev/null
echo $? > /mnt/control/status
sync
echo o > /proc/sysrq-trigger
sleep 60
